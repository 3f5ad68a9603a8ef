// A hook that lowers the learning rate when the loss stops falling: each time the average loss of
// `patience` steps is not below the best one so far, the rate is multiplied by `factor`.
//
//   c++ -std=c++20 -shared -fPIC -I TESSERA docs/examples/patience_hook.cc -o patience_hook.so
//
//   hooks { name: "patience" library: "patience_hook.so" options: "patience=200 factor=0.5" }

#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "runtime/hooks/tessera_hook.h"

namespace tessera::examples {

class PatienceHook final : public hooks::UserHook {
 public:
  explicit PatienceHook(const TesseraSetup& setup) : log_(setup.log) {
    std::istringstream options{std::string(hooks::view(setup.options))};
    for (std::string option; options >> option;) {
      const size_t equals = option.find('=');
      const std::string name = option.substr(0, equals);
      const double value = equals == std::string::npos ? 0 : number(option.substr(equals + 1));
      if (name == "patience" && value >= 1) {
        patience_ = static_cast<int64_t>(value);
      } else if (name == "factor" && value > 0 && value <= 1) {
        factor_ = value;
      } else {
        throw std::invalid_argument("option " + option +
                                    ", expected patience=STEPS or factor=SHARE");
      }
    }
  }

  void plan(TesseraPlan& plan) override { plan.learning_rate *= scale_; }

  void observe(const TesseraReport& report) override {
    if (!std::isfinite(report.loss)) return;
    sum_ += report.loss;
    if (++count_ < patience_) return;
    const double average = sum_ / static_cast<double>(count_);
    sum_ = 0;
    count_ = 0;
    if (average < best_) {
      best_ = average;
      return;
    }
    scale_ *= factor_;
    std::ostringstream line;
    line << "patience: loss " << average << " after step " << report.plan->step << " is not below "
         << best_ << "; learning rate times " << scale_;
    hooks::write(log_, line.str());
  }

  // Written in hexadecimal, so that what comes back has the same bits.
  std::string state() const override {
    std::ostringstream out;
    out << std::hexfloat << best_ << " " << sum_ << " " << scale_ << " " << count_;
    return out.str();
  }

  void restore(std::string_view state) override {
    std::istringstream in{std::string(state)};
    std::string best;
    std::string sum;
    std::string scale;
    if (!(in >> best >> sum >> scale >> count_)) throw std::invalid_argument("damaged state");
    best_ = std::stod(best);
    sum_ = std::stod(sum);
    scale_ = std::stod(scale);
  }

 private:
  // 0 for what is no number; no option may be 0.
  static double number(const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    return end == text.c_str() + text.size() ? value : 0;
  }

  TesseraSink log_;
  int64_t patience_ = 100;
  double factor_ = 0.5;
  double best_ = std::numeric_limits<double>::infinity();
  double sum_ = 0;
  double scale_ = 1;
  int64_t count_ = 0;
};

}  // namespace tessera::examples

extern "C" const TesseraHookTable* tessera_hook_table() {
  return tessera::hooks::table_of<tessera::examples::PatienceHook>();
}
