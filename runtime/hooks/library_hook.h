#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/hooks/tessera_hook.h"
#include "runtime/train/hook.h"

namespace tessera {

class TrainConfig;

/// A hook that lives in a shared library.
class LibraryHook final : public Hook {
 public:
  struct Options {
    std::string name;
    std::string library;  ///< path
    std::string text;     ///< for the hook
    int rank = 0;
    int ranks = 1;
    int64_t steps = 0;
    int64_t sequences = 0;
    int64_t sequence_length = 0;
  };
  /// Loads the library and makes the hook. Throws Error(kUsage), with the name, when the library
  /// cannot be loaded, is of another version, or refuses its options.
  explicit LibraryHook(const Options& options);
  ~LibraryHook() override;
  LibraryHook(const LibraryHook&) = delete;
  LibraryHook& operator=(const LibraryHook&) = delete;

  std::string name() const override { return name_; }
  void plan(StepPlan& plan) override;
  /// Asks for the state as well, so that state() cannot fail in the middle of a save.
  void observe(const StepReport& report) override;
  std::string state() const override { return state_; }
  void restore(std::string_view state) override;

 private:
  struct CloseLibrary {
    void operator()(void* library) const;
  };
  void create(const Options& options);
  void ask_state();

  std::string name_;
  std::unique_ptr<void, CloseLibrary> library_;
  const TesseraHookTable* table_ = nullptr;
  void* hook_ = nullptr;
  std::string state_;
};

/// Whether Tessera can work with such a table; throws Error(kUsage) that begins with `who` if not.
void check_table(const TesseraHookTable* table, const std::string& who);

/// All hooks of a configuration, for one of `ranks` ranks. Throws as LibraryHook.
std::vector<std::unique_ptr<Hook>> make_hooks(const TrainConfig& config, int rank, int ranks);

}  // namespace tessera
