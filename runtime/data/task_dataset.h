#pragma once

#include <filesystem>

#include "runtime/data/dataset.h"
#include "runtime/data/task.h"

namespace tessera {

struct TaskDatasetOptions {
  TaskOptions task = {};
  int64_t samples = 0;     ///< of the train split
  int64_t validation = 0;  ///< samples of the validation split
  std::filesystem::path output;
  bool overwrite = false;  ///< replace another data set in `output`
};

struct TaskDatasetResult {
  DatasetDescription description;
  bool already_there = false;  ///< `output` held this very data set; nothing was written
};

/// Makes a data set of samples of a task. Sample i of a split is make_sample(task, split, i), a
/// document; behind the last one stands an end of document, so that windows as long as a sample
/// show every sample whole. Safe to stop and to run again, as prepare_dataset; throws as it and
/// check(TaskOptions).
TaskDatasetResult make_task_dataset(const TaskDatasetOptions& options);

}  // namespace tessera
