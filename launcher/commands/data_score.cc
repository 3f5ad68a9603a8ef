#include "launcher/commands/data_score.h"

#include <algorithm>
#include <chrono>
#include <iostream>

#include "kernels/core/log.h"
#include "launcher/arguments.h"
#include "runtime/score/score_windows.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "data score";
  line.usage = "--data DIR --output FILE [options]";
  line.about =
      "Scores the windows of a data set's training split, so that a run can begin with the easy\n"
      "ones (docs/curriculum.md): by the loss of a trained model, by the length of documents, or\n"
      "by how rare their tokens are.";
  line.examples =
      "by the loss of an earlier run, for sequences of 8192 tokens\n"
      "  tessera data score --checkpoint runs/small --data data/web --sequence-length 8192 \\\n"
      "    --output data/web/scores\n"
      "by rarity, which needs no model\n"
      "  tessera data score --by rarity --data data/web --sequence-length 8192 \\\n"
      "    --output data/web/scores\n";
  line.options.add_options()  //
      ("data", options::value<std::string>()->value_name("DIR"),
       "a data set made by tessera data prepare")                                               //
      ("output", options::value<std::string>()->value_name("FILE"), "the scores, safetensors")  //
      ("by", options::value<std::string>()->default_value("loss")->value_name("KIND"),
       "loss, length or rarity")  //
      ("checkpoint", options::value<std::string>()->value_name("DIR"),
       "for loss: a checkpoint, or a run directory for its newest one")  //
      ("sequence-length", options::value<int64_t>()->default_value(0)->value_name("N"),
       "tokens of a window, a divisor of the run's batch.sequence_length; 0: as the run of the "
       "checkpoint");
  add_work_place(line);
  line.options.add_options()("help", options::bool_switch(), "show this text");
  return line;
}

WindowScores scores_by_loss(const CommandLine& line,
                            const boost::program_options::variables_map& values,
                            const std::string& data, int64_t length) {
  if (values.count("checkpoint") == 0) {
    misuse(line.name, "--checkpoint is missing; or give --by length or --by rarity");
  }
  const WorkPlace place = work_place(line, values);
  Stream stream(place.device, place.threads);
  auto told = std::chrono::steady_clock::now();
  return score_by_loss(stream, {.checkpoint = values["checkpoint"].as<std::string>(),
                                .data = data,
                                .sequence_length = length,
                                .progress = [&](int64_t done, int64_t all) {
                                  const auto now = std::chrono::steady_clock::now();
                                  if (now - told < std::chrono::seconds(10)) return;
                                  told = now;
                                  log_line(concat("scored ", done, " of ", all, " windows"));
                                }});
}

WindowScores scores_of_text(const CommandLine& line, const std::string& by, const std::string& data,
                            int64_t length) {
  if (length == 0)
    misuse(line.name, concat("--sequence-length is missing, which --by ", by, " needs"));
  const TokenDataset dataset(data, kTrainSplit, read_description(data).vocabulary);
  return by == "length" ? score_by_length(dataset, length) : score_by_rarity(dataset, length);
}

}  // namespace

int run_data_score(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  for (const char* name : {"data", "output"}) {
    if (!values->count(name)) misuse(line.name, concat("--", name, " is missing"));
  }
  const auto& by = (*values)["by"].as<std::string>();
  if (by != "loss" && by != "length" && by != "rarity") {
    misuse(line.name, concat("--by is ", by, ", expected loss, length or rarity"));
  }
  const auto length = (*values)["sequence-length"].as<int64_t>();
  if (length < 0)
    misuse(line.name, concat("--sequence-length is ", length, ", expected 1 or more"));
  const auto& data = (*values)["data"].as<std::string>();
  const WindowScores scores = by == "loss" ? scores_by_loss(line, *values, data, length)
                                           : scores_of_text(line, by, data, length);
  const auto& output = (*values)["output"].as<std::string>();
  write_scores(output, scores);
  const auto [least, most] = std::minmax_element(scores.scores.begin(), scores.scores.end());
  std::cout << output << ": " << scores.scores.size() << " windows of " << scores.sequence_length
            << " tokens scored by " << scores.by << ", from " << *least << " to " << *most << "\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
