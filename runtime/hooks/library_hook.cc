#include "runtime/hooks/library_hook.h"

#include <dlfcn.h>

#include <algorithm>

#include "kernels/core/log.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

TesseraText text_of(std::string_view text) {
  return {text.data(), text.size()};
}

/// Collects what the library writes.
TesseraSink sink_to(std::string& text) {
  return {&text, [](void* context, TesseraText piece) {
            static_cast<std::string*>(context)->append(piece.data, piece.size);
          }};
}

void log_text(void* /*context*/, TesseraText text) {
  log_once(std::string(text.data, text.size));
}

TesseraPlan plain(StepPlan& plan) {
  return {.size = sizeof(TesseraPlan),
          .step = plan.step,
          .stage = static_cast<int32_t>(plan.stage),
          .gated = plan.gated ? 1 : 0,
          .sequences = plan.sequences,
          .sequence_length = plan.sequence_length,
          .learning_rate = plan.learning_rate,
          .kept_blocks = plan.kept_blocks,
          .window = plan.window,
          .gate_strength = plan.gate_strength,
          .kl = plan.kl,
          .entropy = plan.entropy,
          .z_loss = plan.z_loss,
          .pool = plan.pool,
          .weights = plan.weights.data(),
          .sources = plan.weights.size()};
}

void take(const TesseraPlan& changed, StepPlan& plan) {
  plan.learning_rate = changed.learning_rate;
  plan.kept_blocks = changed.kept_blocks;
  plan.window = changed.window;
  plan.gate_strength = changed.gate_strength;
  plan.kl = changed.kl;
  plan.entropy = changed.entropy;
  plan.z_loss = changed.z_loss;
  plan.pool = changed.pool;
}

}  // namespace

void check_table(const TesseraHookTable* table, const std::string& who) {
  if (table == nullptr || table->version != kTesseraHookVersion) {
    throw Error(ExitCode::kUsage,
                concat(who, " has version ", table == nullptr ? 0 : table->version,
                       " of the hook interface, expected ", kTesseraHookVersion,
                       "; build it with runtime/hooks/tessera_hook.h of this Tessera"));
  }
  const bool whole = table->size >= sizeof(TesseraHookTable) && table->create != nullptr &&
                     table->destroy != nullptr && table->plan != nullptr &&
                     table->observe != nullptr && table->state != nullptr &&
                     table->restore != nullptr;
  if (whole) return;
  throw Error(ExitCode::kUsage, concat(who, " has a table of ", table->size,
                                       " bytes in which functions are missing, expected ",
                                       sizeof(TesseraHookTable), " bytes and all of them"));
}

void LibraryHook::CloseLibrary::operator()(void* library) const {
  dlclose(library);
}

LibraryHook::LibraryHook(const Options& options) : name_(options.name) {
  const std::string who = concat("hook ", options.name, ": ", options.library);
  // A name without a slash would be looked for in the system's folders.
  const bool bare = options.library.find('/') == std::string::npos;
  const std::string path = bare ? "./" + options.library : options.library;
  library_.reset(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (library_ == nullptr) {
    throw Error(ExitCode::kUsage,
                concat(who, " cannot be loaded: ", dlerror(), "; check hooks.library"));
  }
  void* const symbol = dlsym(library_.get(), "tessera_hook_table");
  if (symbol == nullptr) {
    throw Error(ExitCode::kUsage,
                concat(who,
                       " exports no tessera_hook_table, expected a library built with "
                       "runtime/hooks/tessera_hook.h"));
  }
  table_ = reinterpret_cast<decltype(&tessera_hook_table)>(symbol)();
  check_table(table_, who);
  create(options);
}

void LibraryHook::create(const Options& options) {
  const TesseraSetup setup{.size = sizeof(TesseraSetup),
                           .name = text_of(options.name),
                           .options = text_of(options.text),
                           .rank = options.rank,
                           .ranks = options.ranks,
                           .steps = options.steps,
                           .sequences = options.sequences,
                           .sequence_length = options.sequence_length,
                           .log = {nullptr, log_text}};
  std::string why;
  hook_ = table_->create(&setup, sink_to(why));
  if (hook_ == nullptr) {
    throw Error(ExitCode::kUsage, concat("hook ", name_, " does not start: ", why));
  }
  try {
    ask_state();
  } catch (...) {
    table_->destroy(hook_);  // no destructor runs for what was not constructed
    throw;
  }
}

LibraryHook::~LibraryHook() {
  table_->destroy(hook_);
}

void LibraryHook::plan(StepPlan& plan) {
  TesseraPlan changed = plain(plan);
  std::string why;
  if (table_->plan(hook_, &changed, sink_to(why)) != 0) throw Error(ExitCode::kError, why);
  take(changed, plan);
}

void LibraryHook::observe(const StepReport& report) {
  StepPlan copy = report.plan;
  const TesseraPlan plan = plain(copy);
  const TesseraReport shown{.size = sizeof(TesseraReport),
                            .plan = &plan,
                            .tokens = report.tokens,
                            .consumed_tokens = report.consumed_tokens,
                            .loss = report.loss,
                            .gate_kl = report.gate_kl,
                            .gate_entropy = report.gate_entropy,
                            .gate_z = report.gate_z,
                            .balance_loss = report.balance_loss,
                            .router_z = report.router_z,
                            .gradient_norm = report.gradient_norm,
                            .sparsity = report.sparsity,
                            .gate_openness = report.gate_openness,
                            .validation_loss = report.validation_loss,
                            .skipped = report.skipped ? 1 : 0};
  std::string why;
  if (table_->observe(hook_, &shown, sink_to(why)) != 0) throw Error(ExitCode::kError, why);
  ask_state();
}

void LibraryHook::ask_state() {
  std::string state;
  std::string why;
  if (table_->state(hook_, sink_to(state), sink_to(why)) != 0) throw Error(ExitCode::kError, why);
  state_ = std::move(state);
}

void LibraryHook::restore(std::string_view state) {
  std::string why;
  if (table_->restore(hook_, text_of(state), sink_to(why)) != 0) {
    throw Error(ExitCode::kBadData, concat("hook ", name_, " cannot go on from its state: ", why));
  }
  state_ = state;
}

std::vector<std::unique_ptr<Hook>> make_hooks(const TrainConfig& config, int rank, int ranks) {
  std::vector<std::unique_ptr<Hook>> hooks;
  for (const HookConfig& hook : config.hooks()) {
    hooks.push_back(std::make_unique<LibraryHook>(
        LibraryHook::Options{.name = hook.name(),
                             .library = hook.library(),
                             .text = hook.options(),
                             .rank = rank,
                             .ranks = ranks,
                             .steps = config.steps(),
                             .sequences = config.batch().sequences(),
                             .sequence_length = config.batch().sequence_length()}));
  }
  return hooks;
}

}  // namespace tessera
