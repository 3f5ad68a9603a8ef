#include "runtime/monitor/event_file.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/monitor/event_records.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

TEST(TfRecord, HasTheBytesOfTheFormat) {
  // Length, its masked CRC, data, its masked CRC: computed apart from this program.
  const std::string record = tf_record("123456789");
  ASSERT_EQ(record.size(), 8 + 4 + 9 + 4u);
  EXPECT_EQ(record.substr(0, 8), std::string("\x09\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(record.substr(12, 9), "123456789");
  // CRC-32C of "123456789" is E3069283; rotated right by 15 and with A282EAD8 added: C78AB0E5.
  EXPECT_EQ(record.substr(21), "\xE5\xB0\x8A\xC7");
}

TEST(EventFile, BeginsWithItsVersionAndWhereItStarts) {
  const TemporaryDirectory directory;
  const EventFile file(directory / "tensorboard", 101);
  const std::vector<fs::path> files = event_files(directory / "tensorboard");
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].filename().string().find("events.out.tfevents."), 0u);
  const std::vector<tensorboard::Event> events = events_in(files[0]);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[1].step(), 101);
  EXPECT_EQ(events[1].session_log().status(), tensorboard::SessionLog::START);
}

TEST(EventFile, ALaterStartComesLater) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "events.out.tfevents.9999999990.other-host.7") << "";
  { const EventFile first(directory / ".", 1); }
  { const EventFile second(directory / ".", 5); }
  const std::vector<fs::path> files = event_files(directory / ".");
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(events_in(files[1])[1].step(), 1);
  EXPECT_EQ(events_in(files[2])[1].step(), 5);
}

TEST(EventFile, HoldsScalarsHistogramsAndPictures) {
  const TemporaryDirectory directory;
  EventFile file(directory / ".", 1);
  const std::vector<Scalar> scalars{
      {"loss", 2.5}, {"gate_kl", std::numeric_limits<double>::quiet_NaN()}, {"tokens", 4096}};
  file.add_scalars(3, scalars);
  file.add_histogram(3, "distance", {.limits = {2, 4, 8}, .counts = {1, 0, 3}, .begin = 1});
  file.add_picture(4, "map", {.png = "png bytes", .height = 8, .width = 16});
  const std::vector<tensorboard::Event> events = events_in(event_files(directory / ".")[0]);
  ASSERT_EQ(events.size(), 5u);

  EXPECT_EQ(events[2].step(), 3);
  EXPECT_GT(events[2].wall_time(), 1.6e9);
  ASSERT_EQ(events[2].summary().value_size(), 2);
  EXPECT_EQ(events[2].summary().value(0).tag(), "loss");
  EXPECT_EQ(events[2].summary().value(0).simple_value(), 2.5f);
  EXPECT_EQ(events[2].summary().value(1).tag(), "tokens");

  const tensorboard::Histogram& histogram = events[3].summary().value(0).histo();
  EXPECT_EQ(histogram.num(), 4);
  EXPECT_EQ(histogram.sum(), 1.5 + 3 * 6);
  EXPECT_EQ(histogram.sum_squares(), 1.5 * 1.5 + 3 * 36);
  EXPECT_EQ(histogram.min(), 1);
  EXPECT_EQ(histogram.max(), 8);
  ASSERT_EQ(histogram.bucket_size(), 4);
  EXPECT_EQ(histogram.bucket_limit(0), 1);
  EXPECT_EQ(histogram.bucket(0), 0);
  EXPECT_EQ(histogram.bucket_limit(3), 8);
  EXPECT_EQ(histogram.bucket(3), 3);

  const tensorboard::Summary::Image& image = events[4].summary().value(0).image();
  EXPECT_EQ(image.height(), 8);
  EXPECT_EQ(image.width(), 16);
  EXPECT_EQ(image.encoded_image_string(), "png bytes");
}

TEST(EventFile, GoesOnWithoutAFileThatCannotBeMade) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "tensorboard") << "a file";
  testing::internal::CaptureStderr();
  EventFile file(directory / "tensorboard", 1);
  const std::vector<Scalar> scalars{{"loss", 1}};
  file.add_scalars(1, scalars);
  file.add_scalars(2, scalars);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(said.find("warning: "), said.rfind("warning: ")) << said;
  EXPECT_NE(said.find("tensorboard/events.out.tfevents."), std::string::npos) << said;
}

}  // namespace
}  // namespace tessera
