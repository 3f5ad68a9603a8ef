#include "runtime/train/spike_guard.h"

#include <cmath>
#include <sstream>

#include "kernels/core/error.h"

namespace tessera {

bool SpikeGuard::Window::is_spike(double value) const {
  const auto count = static_cast<int64_t>(values.size());
  if (count < kWindow) return false;
  double mean = 0;
  for (const double v : values) mean += v / static_cast<double>(count);
  double variance = 0;
  for (const double v : values) variance += (v - mean) * (v - mean) / static_cast<double>(count);
  return value > mean + kSigmas * std::sqrt(variance);
}

void SpikeGuard::Window::push(double value) {
  if (static_cast<int64_t>(values.size()) < kWindow) {
    values.push_back(value);
    return;
  }
  values[static_cast<size_t>(next)] = value;
  next = (next + 1) % kWindow;
}

SpikeGuard::Verdict SpikeGuard::judge(double loss, double gradient_norm) {
  if (!std::isfinite(loss) || !std::isfinite(gradient_norm)) return Verdict::kNotFinite;
  Verdict verdict = Verdict::kApply;
  if (gradient_norm_.is_spike(gradient_norm)) verdict = Verdict::kGradientSpike;
  if (loss_.is_spike(loss)) verdict = Verdict::kLossSpike;
  loss_.push(loss);
  gradient_norm_.push(gradient_norm);
  return verdict;
}

std::string SpikeGuard::state() const {
  std::ostringstream out;
  out << std::hexfloat;
  for (const Window* window : {&loss_, &gradient_norm_}) {
    out << window->next << " " << window->values.size();
    for (const double value : window->values) out << " " << value;
    out << "\n";
  }
  return out.str();
}

void SpikeGuard::restore(std::string_view state) {
  std::istringstream in{std::string(state)};
  SpikeGuard restored;
  for (Window* window : {&restored.loss_, &restored.gradient_norm_}) {
    int64_t count = -1;
    in >> window->next >> count;
    if (!in || count < 0 || count > kWindow || window->next < 0 || window->next >= kWindow) {
      throw Error(ExitCode::kBadData, "spike guard: its state in the checkpoint is damaged");
    }
    for (int64_t i = 0; i < count; ++i) {
      std::string word;  // operator>> does not read what hexfloat wrote
      in >> word;
      char* end = nullptr;
      window->values.push_back(std::strtod(word.c_str(), &end));
      if (word.empty() || *end != '\0') {
        throw Error(ExitCode::kBadData,
                    concat("spike guard: '", word, "' in its state is no number"));
      }
    }
  }
  *this = restored;
}

const char* name_of(SpikeGuard::Verdict verdict) {
  switch (verdict) {
    case SpikeGuard::Verdict::kApply:
      return "applied";
    case SpikeGuard::Verdict::kNotFinite:
      return "loss or gradient is not finite";
    case SpikeGuard::Verdict::kLossSpike:
      return "loss spike";
    case SpikeGuard::Verdict::kGradientSpike:
      return "gradient spike";
  }
  return "?";
}

}  // namespace tessera
