#include "tests/faults/lost_disk.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <vector>

#include "kernels/core/error.h"

namespace tessera::faults {

namespace {

// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are one number.
constexpr unsigned long kShutdown = 0x8004587d;
constexpr uint32_t kWithoutLogFlush = 2;
// The least that mkfs.xfs makes; only what is written takes memory.
constexpr int64_t kImageBytes = int64_t{320} << 20;

[[noreturn]] void fail(const std::string& what) {
  throw Error(ExitCode::kError,
              concat("cannot ", what, ": ", std::generic_category().message(errno)));
}

std::string temporary_directory() {
  std::string name = (std::filesystem::temp_directory_path() / "tessera-disk-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) fail("make " + name);
  return name;
}

// Mounts of this process are its own from now on. Returns whether that is so.
bool enter_own_mounts() {
  static const bool entered =
      unshare(CLONE_NEWNS) == 0 && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  return entered;
}

std::string mkfs_of(const std::string& type) {
  for (const char* folder : {"/usr/sbin/", "/sbin/", "/usr/local/sbin/"}) {
    const std::string program = concat(folder, "mkfs.", type);
    if (access(program.c_str(), X_OK) == 0) return program;
  }
  return {};
}

void make_file_system(const std::string& type, const std::string& device) {
  const std::string program = mkfs_of(type);
  const std::string quiet = "-q";
  const std::string force = type == "ext4" ? "-F" : "-f";
  const pid_t child = fork();
  if (child == 0) {
    execl(program.c_str(), program.c_str(), quiet.c_str(), force.c_str(), device.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(status == 0, program, " ended with status ", status);
}

int make_image() {
  const int image = memfd_create("disk", MFD_CLOEXEC);
  if (image < 0 || ftruncate(image, kImageBytes) != 0) fail("make an image in memory");
  return image;
}

// A free loop device with `image` behind it, open in `descriptor`.
std::string attach_device(int image, int& descriptor) {
  const int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0) fail("open /dev/loop-control");
  std::string device;
  while (true) {
    const int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0) fail("find a free loop device");
    device = concat("/dev/loop", number);
    descriptor = open(device.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor < 0) fail("open " + device);
    loop_config config{};
    config.fd = static_cast<uint32_t>(image);
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (ioctl(descriptor, LOOP_CONFIGURE, &config) == 0) break;
    if (errno != EBUSY) fail("configure " + device);
    close(descriptor);  // another process was faster
  }
  close(control);
  return device;
}

}  // namespace

std::string LostDisk::obstacle(const std::string& type) {
  if (geteuid() != 0) return "only root may mount";
  if (mkfs_of(type).empty()) return concat("there is no mkfs.", type);
  if (access("/dev/loop-control", R_OK | W_OK) != 0) return "there are no loop devices";
  if (!enter_own_mounts()) return "this process may not have mounts of its own";
  try {
    const LostDisk trial(type);
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

LostDisk::LostDisk(const std::string& type)
    : type_(type), path_(temporary_directory()), image_(make_image()) {
  CHECK(enter_own_mounts(), "no mounts of its own");
  device_ = attach_device(image_, device_descriptor_);
  make_file_system(type_, device_);
  mount();
}

LostDisk::~LostDisk() {
  umount2(path_.c_str(), MNT_DETACH);
  close(device_descriptor_);
  close(image_);
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

void LostDisk::mount() const {
  if (::mount(device_.c_str(), path_.c_str(), type_.c_str(), 0, nullptr) != 0) {
    fail(concat("mount ", type_, " of ", device_));
  }
}

void LostDisk::cut_power() const {
  const int root = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  uint32_t flags = kWithoutLogFlush;
  if (root < 0 || ioctl(root, kShutdown, &flags) != 0) fail("cut the power of " + type_);
  close(root);
}

void LostDisk::unmount() const {
  // The last process that was killed here may not be gone altogether.
  for (int attempt = 0; umount(path_.c_str()) != 0; ++attempt) {
    if (errno != EBUSY || attempt == 1000) fail("unmount " + path_.string());
    usleep(1000);
  }
}

void LostDisk::restore_power() {
  unmount();
  // The cache of a device that stays open keeps blocks as they were in memory, which the disk never
  // got. A machine that lost its power has no such memory: it finds the image alone.
  close(device_descriptor_);
  device_ = attach_device(image_, device_descriptor_);
  mount();
}

std::string SmallDisk::obstacle() {
  if (geteuid() != 0) return "only root may mount";
  if (!enter_own_mounts()) return "this process may not have mounts of its own";
  return {};
}

SmallDisk::SmallDisk(int64_t bytes) : path_(temporary_directory()) {
  CHECK(enter_own_mounts(), "no mounts of its own");
  if (::mount("tmpfs", path_.c_str(), "tmpfs", 0, concat("size=", bytes).c_str()) != 0) {
    fail("mount a small tmpfs");
  }
}

SmallDisk::~SmallDisk() {
  umount2(path_.c_str(), MNT_DETACH);
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

int64_t SmallDisk::free_bytes() const {
  struct statvfs status {};
  if (statvfs(path_.c_str(), &status) != 0) fail("ask for the free space of " + path_.string());
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

void SmallDisk::fill(int64_t left) const {
  const std::filesystem::path filler = path_ / "filler";
  std::error_code ignored;
  std::filesystem::remove(filler, ignored);
  if (left < 0) return;
  const int file = open(filler.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) fail("make " + filler.string());
  // Another thread may take space in between.
  for (int64_t bytes = free_bytes() - left; bytes > 0; bytes = free_bytes() - left) {
    if (fallocate(file, 0, 0, bytes) == 0) break;
    if (errno != ENOSPC) fail("fill " + path_.string());
  }
  close(file);
}

}  // namespace tessera::faults
