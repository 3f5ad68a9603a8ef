// A shared library that is no hook.

namespace tessera::support {

int answer() {
  return 42;
}

}  // namespace tessera::support
