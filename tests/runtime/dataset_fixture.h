#pragma once

#include <string>
#include <vector>

#include "runtime/data/dataset.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {

/// Writes a finished byte data set with the same documents in both splits.
inline void write_test_dataset(const std::filesystem::path& directory,
                               const std::vector<std::vector<int32_t>>& documents) {
  DatasetDescription description{.vocabulary = 257, .end_of_document = 256};
  for (const char* split : {kTrainSplit, kValidationSplit}) {
    TokenFileWriter writer(directory / split, 257);
    for (const std::vector<int32_t>& document : documents) writer.add_document(document);
    writer.seal();
    writer.publish();
    description.train = description.validation = {writer.documents(), writer.tokens()};
  }
  write_description(directory, description);
}

}  // namespace tessera
