#pragma once

#include <string>

namespace google::protobuf {
class Message;
}

namespace tessera {

/// Text format that read_text reads back as the same message. Unlike TextFormat it also writes the
/// zeros of fields without presence, so that a reader sees every choice: `precision: BF16`.
std::string to_text(const google::protobuf::Message& message);

}  // namespace tessera
