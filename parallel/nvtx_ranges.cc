#include "parallel/nvtx_ranges.h"

#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

namespace tessera {

namespace {

class NvtxRanges final : public FlightObserver {
 public:
  explicit NvtxRanges(FlightRecorder& recorder)
      : recorder_(recorder), domain_(nvtxDomainCreateA("tessera")) {
    for (int phase = 0; phase < kPhases; ++phase) {
      phases_[static_cast<size_t>(phase)] =
          nvtxDomainRegisterStringA(domain_, name_of(static_cast<Phase>(phase)));
    }
    for (int operation = 0; operation < kCollectives; ++operation) {
      operations_[static_cast<size_t>(operation)] =
          nvtxDomainRegisterStringA(domain_, name_of(static_cast<Collective>(operation)));
    }
    recorder_.tell(*this);
  }
  ~NvtxRanges() override {
    recorder_.forget(*this);
    leave(kStep);
    for (const Exchange& exchange : open_) nvtxDomainRangeEnd(domain_, exchange.range);
    nvtxDomainDestroy(domain_);
  }
  NvtxRanges(const NvtxRanges&) = delete;
  NvtxRanges& operator=(const NvtxRanges&) = delete;

  void observe(FlightEvent event, int64_t time, int64_t index) override;

 private:
  // Ranges inside each other, from the outermost.
  enum Depth : int { kStep, kPhase, kLayer, kWait, kDepths };

  struct Exchange {
    int64_t index;
    nvtxRangeId_t range;
  };

  /// Payload: the step, the layer, or the bytes that are sent.
  static nvtxEventAttributes_t attributes(nvtxStringHandle_t name, int64_t payload) {
    nvtxEventAttributes_t attributes{};
    attributes.version = NVTX_VERSION;
    attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
    attributes.message.registered = name;
    attributes.payloadType = NVTX_PAYLOAD_TYPE_INT64;
    attributes.payload.llValue = payload;
    return attributes;
  }
  void enter(Depth depth, nvtxStringHandle_t name, int64_t payload) {
    const nvtxEventAttributes_t range = attributes(name, payload);
    nvtxDomainRangePushEx(domain_, &range);
    entered_[depth] = true;
  }
  /// Ends the range at `depth` and those inside it.
  void leave(Depth depth) {
    for (int inner = kDepths; inner-- > depth;) {
      if (entered_[static_cast<size_t>(inner)]) nvtxDomainRangePop(domain_);
      entered_[static_cast<size_t>(inner)] = false;
    }
  }
  void start(int64_t index);
  void complete(int64_t index);

  FlightRecorder& recorder_;
  nvtxDomainHandle_t domain_;
  nvtxStringHandle_t step_ = nvtxDomainRegisterStringA(domain_, "step");
  nvtxStringHandle_t layer_ = nvtxDomainRegisterStringA(domain_, "layer");
  nvtxStringHandle_t wait_ = nvtxDomainRegisterStringA(domain_, "wait");
  std::array<nvtxStringHandle_t, kPhases> phases_{};
  std::array<nvtxStringHandle_t, kCollectives> operations_{};
  std::array<bool, kDepths> entered_{};
  std::vector<Exchange> open_;
};

void NvtxRanges::observe(FlightEvent event, int64_t, int64_t index) {
  const FlightState& state = recorder_.map().state;
  switch (event) {
    case FlightEvent::kStep:
      leave(kStep);
      if (state.step >= 0) enter(kStep, step_, state.step);
      break;
    case FlightEvent::kPhase:
      leave(kPhase);
      enter(kPhase, phases_[static_cast<size_t>(state.phase)], state.step);
      break;
    case FlightEvent::kLayer:
      leave(kLayer);
      if (state.layer >= 0) enter(kLayer, layer_, state.layer);
      break;
    case FlightEvent::kStepEnd:
      leave(kStep);
      break;
    case FlightEvent::kStart:
      start(index);
      break;
    case FlightEvent::kComplete:
      complete(index);
      break;
    case FlightEvent::kWait:
      leave(kWait);
      enter(kWait, wait_, index);
      break;
    case FlightEvent::kWaitEnd:
      leave(kWait);
      break;
  }
}

void NvtxRanges::start(int64_t index) {
  const std::optional<CollectiveRecord> record = read_record(recorder_.map(), index);
  if (!record) return;
  const nvtxEventAttributes_t range =
      attributes(operations_[static_cast<size_t>(record->operation)], record->sent);
  open_.push_back({index, nvtxDomainRangeStartEx(domain_, &range)});
}

void NvtxRanges::complete(int64_t index) {
  const auto found = std::find_if(open_.begin(), open_.end(),
                                  [&](const Exchange& open) { return open.index == index; });
  if (found == open_.end()) return;
  nvtxDomainRangeEnd(domain_, found->range);
  open_.erase(found);
}

}  // namespace

std::unique_ptr<FlightObserver> make_nvtx_ranges(FlightRecorder& recorder) {
  return std::make_unique<NvtxRanges>(recorder);
}

}  // namespace tessera
