#include "launcher/doctor/finding.h"

#include <algorithm>
#include <iomanip>
#include <iterator>
#include <sstream>

namespace tessera {

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kWarn:
      return "warn";
    default:
      return "fail";
  }
}

void append(Findings& all, Findings more) {
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

Verdict worst_of(const Findings& findings) {
  Verdict worst = Verdict::kOk;
  for (const Finding& one : findings) worst = std::max(worst, one.verdict);
  return worst;
}

std::string lines_of(const Findings& findings) {
  size_t width = 0;
  for (const Finding& one : findings) width = std::max(width, one.subject.size());
  std::ostringstream out;
  for (const Finding& one : findings) {
    out << std::left << std::setw(6) << name_of(one.verdict) << std::setw(static_cast<int>(width))
        << one.subject << "  ";
    if (!one.hosts.empty()) out << "[" << one.hosts << "] ";
    out << one.found;
    if (!one.advice.empty()) out << " -> " << one.advice;
    out << "\n";
  }
  const auto count = [&](Verdict verdict) {
    return std::count_if(findings.begin(), findings.end(),
                         [&](const Finding& one) { return one.verdict == verdict; });
  };
  const auto warnings = count(Verdict::kWarn);
  const auto failures = count(Verdict::kFail);
  out << count(Verdict::kOk) << " ok, " << warnings
      << (warnings == 1 ? " warning, " : " warnings, ") << failures
      << (failures == 1 ? " failure\n" : " failures\n");
  return out.str();
}

}  // namespace tessera
