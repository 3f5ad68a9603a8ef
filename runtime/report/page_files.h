#pragma once

#include <string_view>

namespace tessera {

/// The files of runtime/report/page/, which the build puts into the program.
struct PageFiles {
  std::string_view page;    ///< HTML with places {{title}}, {{style}}, {{script}} and {{data}}
  std::string_view style;   ///< CSS
  std::string_view script;  ///< all JavaScript, in the order of runtime/CMakeLists.txt
};

const PageFiles& page_files();

}  // namespace tessera
