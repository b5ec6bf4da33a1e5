#include "server/net/receive_window.h"

#include <grpcpp/version_info.h>

// gRPC's probe for the bandwidth-delay product is the only one to say how large the window of a connection is (an
// argument sets that of a stream alone), and this is the only way to have a word in it. gRPC's headers do not show it,
// so the version must be the one that has been looked at.
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR == 51

// As src/core/ext/transport/chttp2/transport/flow_control.h has it.
namespace grpc_core::chttp2 {

class TestOnlyTransportTargetWindowEstimatesMocker {
 public:
  virtual ~TestOnlyTransportTargetWindowEstimatesMocker() = default;
  virtual double ComputeNextTargetInitialWindowSizeFromPeriodicUpdate(double current_target) = 0;
};
extern TestOnlyTransportTargetWindowEstimatesMocker* g_test_only_transport_target_window_estimates_mocker;

}  // namespace grpc_core::chttp2

namespace kvcompress {
namespace {

class FixedWindow final : public grpc_core::chttp2::TestOnlyTransportTargetWindowEstimatesMocker {
 public:
  double ComputeNextTargetInitialWindowSizeFromPeriodicUpdate(double) override { return kReceiveWindowBytes; }
};

}  // namespace

bool FixReceiveWindows() {
  static auto& window = *new FixedWindow;
  grpc_core::chttp2::g_test_only_transport_target_window_estimates_mocker = &window;
  return true;
}

}  // namespace kvcompress

#else

namespace kvcompress {

bool FixReceiveWindows() { return false; }

}  // namespace kvcompress

#endif
