// A hook that fails as its options say: "throw plan 3", "throw observe 3", "throw state 3",
// "throw restore", each on the last rank alone; "differ 3" on rank 1; "range 3", "weights 3";
// "refuse". "count" works, with a number that it keeps in its state.

#include <sstream>
#include <stdexcept>
#include <string>

#include "runtime/hooks/tessera_hook.h"

namespace tessera::support {

class FaultyHook final : public hooks::UserHook {
 public:
  explicit FaultyHook(const TesseraSetup& setup)
      : rank_(setup.rank), last_(setup.rank + 1 == setup.ranks) {
    std::istringstream options{std::string(hooks::view(setup.options))};
    options >> kind_;
    if (kind_ == "throw") options >> where_;
    options >> step_;
    if (kind_ == "refuse") throw std::invalid_argument("it does not like its options");
  }

  void plan(TesseraPlan& plan) override {
    now_ = plan.step;
    fail_in("plan");
    if (kind_ == "count") plan.learning_rate *= 1 + 0.01 * static_cast<double>(count_);
    if (plan.step != step_) return;
    if (kind_ == "differ" && rank_ == 1) plan.window -= 1;
    if (kind_ == "range") plan.kept_blocks = 1000;
    if (kind_ == "weights" && plan.sources > 0) plan.weights[0] = 2;
  }
  void observe(const TesseraReport& report) override {
    fail_in("observe");
    if (report.loss > 0) ++count_;
  }
  std::string state() const override {
    fail_in("state");
    return std::to_string(count_);
  }
  void restore(std::string_view state) override {
    if (last_ && where_ == "restore") throw std::runtime_error("as asked");
    count_ = std::stoi(std::string(state));
  }

 private:
  void fail_in(const std::string& place) const {
    if (last_ && kind_ == "throw" && where_ == place && now_ == step_)
      throw std::runtime_error("as asked");
  }

  int32_t rank_;
  bool last_;
  std::string kind_;
  std::string where_;
  int64_t step_ = -1;
  int64_t now_ = 0;
  int count_ = 0;
};

}  // namespace tessera::support

extern "C" const TesseraHookTable* tessera_hook_table() {
  return tessera::hooks::table_of<tessera::support::FaultyHook>();
}
