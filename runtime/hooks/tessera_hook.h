#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>

/// A hook of one's own, in a shared library: it changes the plan of each step, sees what came of
/// it, and is saved with the run (docs/curriculum.md). This header is all that it needs.
///
/// What crosses between Tessera and the library is between the braces of extern "C": structs of
/// numbers and pointers, and pointers to functions. Either side may have been built by another
/// compiler, with another standard library, from another version of this header:
/// * a struct begins with its size in bytes, and later versions only add to its end;
/// * `version` changes when that is not enough, and then Tessera refuses the library;
/// * a text is lent for the time of the call, and whoever receives it copies it;
/// * no exception leaves a function. It writes the reason to its `error` and returns 1, or nullptr.
extern "C" {

struct TesseraText {
  const char* data;
  uint64_t size;
};

/// Where a text goes: write(context, text), once or in pieces.
struct TesseraSink {
  void* context;
  void (*write)(void* context, TesseraText text);
};

/// What a hook is told when it is made.
struct TesseraSetup {
  uint64_t size;
  TesseraText name;     ///< hooks.name
  TesseraText options;  ///< hooks.options
  int32_t rank;
  int32_t ranks;
  int64_t steps;            ///< of the whole run
  int64_t sequences;        ///< batch.sequences
  int64_t sequence_length;  ///< batch.sequence_length
  TesseraSink log;          ///< a line for the log of the run; only rank 0's is heard
};

/// What one step will do. Numbers and their limits are those of StepPlan.
struct TesseraPlan {
  uint64_t size;
  int64_t step;             ///< counts from 1
  int32_t stage;            ///< 0 dense, 1 gate warm-up, 2 transition, 3 tuning
  int32_t gated;            ///< 1: global groups attend to chosen blocks only
  int64_t sequences;        ///< of the step
  int64_t sequence_length;  ///< tokens
  // From here on a hook may change what it likes.
  double learning_rate;
  int64_t kept_blocks;   ///< 1 to all
  int64_t window;        ///< tokens, 1 to sequence_length
  double gate_strength;  ///< 0 to 1 - 2^-10
  double kl;
  double entropy;
  double z_loss;
  double pool;      ///< share of the windows, the easiest first, above 0 and at most 1
  double* weights;  ///< [sources] shares of curriculum.sources, at most 1 in all
  uint64_t sources;
};

/// What came of it, summed over all ranks: the same on each of them. There are no times, because
/// those differ, and with them what ranks would make of it.
struct TesseraReport {
  uint64_t size;
  const TesseraPlan* plan;
  int64_t tokens;           ///< of this step
  int64_t consumed_tokens;  ///< since the run began
  double loss;              ///< nats per token
  double gate_kl;
  double gate_entropy;
  double gate_z;
  double balance_loss;
  double router_z;
  double gradient_norm;
  double sparsity;
  double gate_openness;
  double validation_loss;  ///< negative when it was not measured
  int32_t skipped;         ///< 1: the update was not applied
};

struct TesseraHookTable {
  uint64_t size;
  uint64_t version;  ///< kTesseraHookVersion
  void* (*create)(const TesseraSetup* setup, TesseraSink error);
  void (*destroy)(void* hook);
  int32_t (*plan)(void* hook, TesseraPlan* plan, TesseraSink error);
  int32_t (*observe)(void* hook, const TesseraReport* report, TesseraSink error);
  int32_t (*state)(void* hook, TesseraSink state, TesseraSink error);
  int32_t (*restore)(void* hook, TesseraText state, TesseraSink error);
};

/// The one function that the library exports.
const TesseraHookTable* tessera_hook_table();
}

inline constexpr uint64_t kTesseraHookVersion = 1;

namespace tessera::hooks {

/// For hooks in C++: derive, give it a constructor from const TesseraSetup&, and export
///   extern "C" const TesseraHookTable* tessera_hook_table() {
///     return tessera::hooks::table_of<MyHook>();
///   }
/// Exceptions may be thrown anywhere; their text stops the run.
class UserHook {
 public:
  virtual ~UserHook() = default;
  /// Before the step. On every rank the same, or the run is stopped.
  virtual void plan(TesseraPlan& plan) { (void)plan; }
  /// After it.
  virtual void observe(const TesseraReport& report) { (void)report; }
  /// Goes into the checkpoint, and comes back.
  virtual std::string state() const { return {}; }
  virtual void restore(std::string_view state) { (void)state; }
};

inline std::string_view view(TesseraText text) {
  return {text.data, text.size};
}

inline void write(const TesseraSink& sink, std::string_view text) {
  sink.write(sink.context, {text.data(), text.size()});
}

/// Does `work`; 1 when it throws, after writing why to `error`.
template <class Work>
int32_t guarded(const TesseraSink& error, Work&& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& thrown) {
    write(error, thrown.what());
  } catch (...) {
    write(error, "it threw what is no std::exception");
  }
  return 1;
}

/// The table of a class derived from UserHook.
template <class Hook>
const TesseraHookTable* table_of() {
  static constexpr auto self = [](void* hook) { return static_cast<UserHook*>(hook); };
  static const TesseraHookTable table{
      .size = sizeof(TesseraHookTable),
      .version = kTesseraHookVersion,
      .create = [](const TesseraSetup* setup, TesseraSink error) -> void* {
        if (setup->size < sizeof(TesseraSetup)) {
          write(error, "it was built for a later Tessera than this one");
          return nullptr;
        }
        std::unique_ptr<UserHook> made;
        (void)guarded(error, [&] { made = std::make_unique<Hook>(*setup); });
        return made.release();
      },
      .destroy = [](void* hook) { const std::unique_ptr<UserHook> last(self(hook)); },
      .plan = [](void* hook, TesseraPlan* plan,
                 TesseraSink error) { return guarded(error, [&] { self(hook)->plan(*plan); }); },
      .observe =
          [](void* hook, const TesseraReport* report, TesseraSink error) {
            return guarded(error, [&] { self(hook)->observe(*report); });
          },
      .state =
          [](void* hook, TesseraSink state, TesseraSink error) {
            return guarded(error, [&] { write(state, self(hook)->state()); });
          },
      .restore =
          [](void* hook, TesseraText state, TesseraSink error) {
            return guarded(error, [&] { self(hook)->restore(view(state)); });
          }};
  return &table;
}

}  // namespace tessera::hooks
