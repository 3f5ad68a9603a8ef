#include "checkpoint/shared_save.h"

#include <array>
#include <sstream>

#include "checkpoint/writer.h"
#include "parallel/agreement.h"

namespace tessera {

namespace {

// What rank 0 does for all. That a newer incarnation has taken over is an error of every rank.
void on_first(Communicator& ranks, const std::function<void()>& action) {
  std::optional<Failure> replaced;
  if (ranks.rank() == 0) {
    try {
      action();
    } catch (const Error& error) {
      if (error.code() != ExitCode::kTryAgain) throw;
      replaced = {.reason = without_rank(error.what()), .code = error.code()};
    }
  }
  if (const std::optional<Failure> lost = first_failure(ranks, replaced)) {
    throw Error(lost->code, lost->reason);
  }
}

std::string encode(const std::optional<SaveTicket>& ticket) {
  if (!ticket) return {};
  const FileIdentity& id = ticket->identity;
  return concat(id.run_uuid, " ", id.epoch, " ", id.step, " ", ticket->directory.string());
}

SaveTicket decode(const std::string& text) {
  SaveTicket ticket;
  std::istringstream in(text);
  in >> ticket.identity.run_uuid >> ticket.identity.epoch >> ticket.identity.step;
  in.get();
  std::string directory;
  std::getline(in, directory, '\0');
  ticket.directory = directory;
  return ticket;
}

std::optional<Failure> write_own_part(int rank, CheckpointStore* store, const SaveTicket& ticket,
                                      const CheckpointContents& contents) {
  if (rank == 0) return store->write(contents);
  return failure_of([&] {
    FileIdentity identity = ticket.identity;
    identity.writer = rank;
    write_part(Directory(ticket.directory), identity, contents, [](const char*) {});
  });
}

}  // namespace

SaveReport save_together(Communicator& ranks, CheckpointStore* store,
                         const CheckpointContents& contents) {
  const int rank = ranks.rank();
  CHECK((store != nullptr) == (rank == 0), "save_together: rank 0 alone has the store");
  std::array<double, 1> bytes{static_cast<double>(part_bytes(contents, rank))};
  ranks.all_reduce_values(bytes);
  std::string ticket;
  on_first(ranks,
           [&] { ticket = encode(store->begin(contents.step, static_cast<int64_t>(bytes[0]))); });
  ticket = broadcast_text(ranks, ticket, 0);
  std::optional<Failure> failure;
  if (!ticket.empty()) {
    failure = first_failure(ranks, write_own_part(rank, store, decode(ticket), contents));
    if (failure) failure->reason = to_text(*failure, ranks);
  }
  SaveReport report;
  on_first(ranks, [&] { report = store->finish(contents, ranks.size(), failure); });
  std::array<double, 1> committed{report.committed ? 1.0 : 0.0};
  ranks.all_reduce_values(committed);
  report.committed = committed[0] > 0;
  return report;
}

}  // namespace tessera
