#include <nlohmann/json.hpp>

#include "launcher/doctor/checkup.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

using Json = nlohmann::ordered_json;

// What is no UTF-8 is replaced, not refused: names of files may be anything.
constexpr auto kReplace = Json::error_handler_t::replace;

std::string text_of(const Json& json, const char* name) {
  const auto found = json.find(name);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

Verdict verdict_of(const std::string& name) {
  return name == "ok" ? Verdict::kOk : name == "warn" ? Verdict::kWarn : Verdict::kFail;
}

Checkup checkup_of(const Json& json) {
  Checkup checkup{.host = text_of(json, "host"), .program = {}};
  const Json program = json.value("program", Json::object());
  checkup.program.version = text_of(program, "version");
  checkup.program.path = text_of(program, "path");
  checkup.program.digest = text_of(program, "digest");
  checkup.program.mpi = text_of(program, "mpi");
  const Json numbers = json.value("numbers", Json::object());
  for (const auto& [name, value] : numbers.items()) {
    if (value.is_number()) checkup.numbers[name] = value.get<double>();
  }
  const Json findings = json.value("findings", Json::array());
  for (const Json& one : findings) {
    checkup.findings.push_back({.verdict = verdict_of(text_of(one, "verdict")),
                                .subject = text_of(one, "subject"),
                                .found = text_of(one, "found"),
                                .advice = text_of(one, "advice"),
                                .hosts = text_of(one, "hosts")});
  }
  return checkup;
}

}  // namespace

std::string to_json(const Checkup& checkup) {
  Json findings = Json::array();
  for (const Finding& one : checkup.findings) {
    findings.push_back({{"verdict", name_of(one.verdict)},
                        {"subject", one.subject},
                        {"found", one.found},
                        {"advice", one.advice},
                        {"hosts", one.hosts}});
  }
  const Program& program = checkup.program;
  const Json json{{"host", checkup.host},
                  {"verdict", name_of(worst_of(checkup.findings))},
                  {"program",
                   {{"version", program.version},
                    {"path", program.path},
                    {"digest", program.digest},
                    {"mpi", program.mpi}}},
                  {"numbers", checkup.numbers},
                  {"findings", std::move(findings)}};
  return json.dump(-1, ' ', false, kReplace);
}

std::optional<Checkup> checkup_from(const std::string& text) {
  for (const std::string& line : lines_in(text)) {
    if (!line.starts_with("{\"host\"")) continue;
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object()) return checkup_of(json);
  }
  return {};
}

}  // namespace tessera
