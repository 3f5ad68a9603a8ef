#include "runtime/report/report_page.h"

#include <string_view>

#include "kernels/core/error.h"
#include "runtime/report/page_data.h"
#include "runtime/report/page_files.h"

namespace tessera {

namespace {

std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

}  // namespace

std::string report_page(const RunRecord& run) {
  const PageFiles& files = page_files();
  std::string page;
  std::string_view rest = files.page;
  // Once from the front to the back: what is filled in is not searched for places.
  while (true) {
    const size_t place = rest.find("{{");
    page += rest.substr(0, place);
    if (place == std::string_view::npos) return page;
    const size_t end = rest.find("}}", place);
    const std::string_view name = rest.substr(place + 2, end - place - 2);
    if (name == "title") page += escaped(run.directory.lexically_normal().string());
    if (name == "style") page += files.style;
    if (name == "script") page += files.script;
    if (name == "data") page += page_data(run);
    rest.remove_prefix(end + 2);
  }
}

}  // namespace tessera
