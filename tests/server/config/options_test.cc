#include "server/config/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

using Environment = std::map<std::string, std::string>;

absl::StatusOr<Options> Parse(const std::vector<std::string>& args, const Environment& environment = {}) {
  return ParseOptions(args, [&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

std::string ConfigFile(const std::string& text) {
  const std::string path = ::testing::TempDir() + "kvc_options_test.json";
  std::ofstream(path) << text;
  return path;
}

TEST(OptionsTest, DefaultsServeThisMachineOnly) {
  const absl::StatusOr<Options> options = Parse({});
  ASSERT_THAT(options, IsOk());
  EXPECT_THAT(options->listen, ElementsAre("127.0.0.1:50051"));
  EXPECT_EQ(options->metrics_listen, "127.0.0.1:9464");
  EXPECT_EQ(options->memory_budget, uint64_t{1} << 30);
  EXPECT_EQ(options->max_tensor_bytes, uint64_t{64} << 30);
  EXPECT_EQ(options->drain_timeout, std::chrono::seconds(30));
}

TEST(OptionsTest, BothFormsOfAFlag) {
  const absl::StatusOr<Options> options = Parse(
      {"--threads=3", "--memory-budget", "512MiB", "--listen", "127.0.0.1:0,[::1]:0", "--listen=localhost:1",
       "--metrics-listen=off", "--drain-timeout=1m30s", "--log-format", "json", "--max-tensor-bytes=12345",
       "--healthcheck", "--default-codec", "raw|zstd", "--artifacts", "/var/lib/kvcal", "--artifact-memory=2GiB"});
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->artifacts, "/var/lib/kvcal");
  EXPECT_EQ(options->artifact_memory, uint64_t{2} << 30);
  EXPECT_EQ(options->threads, 3u);
  EXPECT_EQ(options->memory_budget, uint64_t{512} << 20);
  EXPECT_THAT(options->listen, ElementsAre("127.0.0.1:0", "[::1]:0", "localhost:1"));
  EXPECT_EQ(options->metrics_listen, "");
  EXPECT_EQ(options->drain_timeout, std::chrono::seconds(90));
  EXPECT_TRUE(options->log_json);
  EXPECT_EQ(options->max_tensor_bytes, 12345u);
  EXPECT_TRUE(options->healthcheck);
  EXPECT_EQ(options->default_codec, "raw|zstd");
}

TEST(OptionsTest, TheBandwidthOfALink) {
  EXPECT_EQ(Parse({})->link_bandwidth, 0);
  EXPECT_EQ(Parse({"--link-bandwidth=25Gbit/s"})->link_bandwidth, 3.125e9);
  EXPECT_EQ(Parse({"--link-bandwidth", "3 GB/s"})->link_bandwidth, 3e9);
  EXPECT_EQ(Parse({"--link-bandwidth=25Gbit/s", "--link-bandwidth=0"})->link_bandwidth, 0);
  for (const char* text : {"25", "", "25Gbit", "-1GB/s"}) {
    EXPECT_THAT(std::string(Parse({"--link-bandwidth", text}).status().message()),
                ::testing::HasSubstr("for example 25Gbit/s, 800Mb/s or 3GB/s"))
        << text;
  }
}

TEST(OptionsTest, AgesOfConnections) {
  EXPECT_EQ(Parse({})->max_connection_age, std::chrono::seconds(0));
  EXPECT_EQ(Parse({})->max_connection_age_grace, std::chrono::seconds(0));
  const absl::StatusOr<Options> options = Parse({"--max-connection-age=5m", "--max-connection-age-grace=30s"});
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->max_connection_age, std::chrono::minutes(5));
  EXPECT_EQ(options->max_connection_age_grace, std::chrono::seconds(30));
}

TEST(OptionsTest, IdleStreams) {
  EXPECT_EQ(Parse({})->stream_idle_timeout, std::chrono::minutes(1));
  EXPECT_EQ(Parse({"--stream-idle-timeout=90s"})->stream_idle_timeout, std::chrono::seconds(90));
}

TEST(OptionsTest, UnixSockets) {
  const std::string longest = "unix:/" + std::string(106, 'x');
  const absl::StatusOr<Options> options =
      Parse({"--listen", "unix:/run/kvc.sock,[::1]:0,unix:here", "--listen", longest, "--unix-socket-mode=600"});
  ASSERT_THAT(options, IsOk());
  EXPECT_THAT(options->listen, ElementsAre("unix:/run/kvc.sock", "[::1]:0", "unix:here", longest));
  EXPECT_EQ(options->unix_socket_mode, 0600u);
  EXPECT_EQ(Parse({})->unix_socket_mode, 0660u);
  EXPECT_THAT(Parse({"--listen", longest + "x"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected a path of 1 to 107 bytes")));
}

TEST(OptionsTest, SharedMemoryIsOffUnlessItHasAPrefix) {
  EXPECT_EQ(Parse({})->shared_memory_prefix, "");
  EXPECT_EQ(Parse({"--shared-memory=kvcompress-"})->shared_memory_prefix, "kvcompress-");
  EXPECT_EQ(Parse({"--shared-memory=a", "--foreign-memory=vllm_offload_"})->foreign_memory_prefix, "vllm_offload_");
  EXPECT_EQ(Parse({"--foreign-memory=off"})->foreign_memory_prefix, "");
  EXPECT_EQ(Parse({"--shared-memory=off"}, {{"KV_COMPRESSD_SHARED_MEMORY", "kvcompress-"}})->shared_memory_prefix, "");
}

TEST(OptionsTest, BeyondThisMachineNeedsTlsOrAWord) {
  const auto refused = [](const std::vector<std::string>& args) { return std::string(Parse(args).status().message()); };
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "127.0.0.1:1,0.0.0.0:1"}) {
    EXPECT_THAT(refused({"--listen", address}),
                HasSubstr("would serve anybody in plaintext: give --tls-cert and --tls-key"));
    EXPECT_THAT(Parse({"--listen", address, "--allow-plaintext"}), IsOk());
    EXPECT_THAT(Parse({"--listen", address, "--tls-cert=c", "--tls-key=k"}), IsOk());
    EXPECT_THAT(Parse({"--listen", address, "--healthcheck"}), IsOk());  // asks, and serves nobody
    // Tokens are not sent in plaintext beyond this machine, whatever else is allowed.
    EXPECT_THAT(refused({"--listen", address, "--allow-plaintext", "--token-file=t"}),
                HasSubstr("tokens would go there in plaintext"));
    EXPECT_THAT(Parse({"--listen", address, "--tls-cert=c", "--tls-key=k", "--token-file=t"}), IsOk());
  }
  EXPECT_THAT(Parse({"--listen", "127.0.0.1:1,[::1]:1,localhost:1,unix:/s", "--token-file=t"}), IsOk());
}

TEST(OptionsTest, TlsSettingsGoTogether) {
  EXPECT_THAT(Parse({"--tls-cert=c"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("go together")));
  EXPECT_THAT(Parse({"--tls-key=k"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("go together")));
  EXPECT_THAT(Parse({"--tls-client-ca=ca"}),
              StatusIs(absl::StatusCode::kInvalidArgument, "--tls-client-ca needs --tls-cert and --tls-key"));
  const absl::StatusOr<Options> options = Parse({"--tls-cert=c", "--tls-key=k", "--tls-client-ca=ca"});
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->tls_cert + options->tls_key + options->tls_client_ca, "ckca");
}

TEST(OptionsTest, CommandLineBeforeEnvironmentBeforeFile) {
  const std::string path = ConfigFile(
      R"({"threads": 1, "max-streams": 1, "listen": ["127.0.0.1:1", "127.0.0.1:2"], "drain-timeout": "1s"})");
  const Environment environment = {{"KV_COMPRESSD_CONFIG", path},
                                   {"KV_COMPRESSD_THREADS", "2"},
                                   {"KV_COMPRESSD_MAX_STREAMS", "2"},
                                   {"KV_COMPRESSD_METRICS_LISTEN", ""},
                                   {"KV_COMPRESSD_SERVICE_HOST", "10.0.0.1"}};  // Kubernetes' own
  absl::StatusOr<Options> options = Parse({"--threads=3"}, environment);
  ASSERT_THAT(options, IsOk());
  EXPECT_EQ(options->threads, 3u);
  EXPECT_EQ(options->max_streams, 2u);
  EXPECT_EQ(options->drain_timeout, std::chrono::seconds(1));
  EXPECT_THAT(options->listen, ElementsAre("127.0.0.1:1", "127.0.0.1:2"));
  EXPECT_EQ(options->metrics_listen, "");
  options = Parse({"--listen=127.0.0.2:2"}, environment);
  ASSERT_THAT(options, IsOk());
  EXPECT_THAT(options->listen, ElementsAre("127.0.0.2:2"));
}

TEST(OptionsTest, FaultsNameTheirPlace) {
  const struct {
    std::vector<std::string> args;
    std::string text;
  } cases[] = {
      {{"--thread=3"}, "unknown argument --thread=3; --help lists all"},
      {{"serve"}, "unknown argument serve; --help lists all"},
      {{"-threads=3"}, "unknown argument -threads=3; --help lists all"},
      {{"--threads"}, "--threads needs a value"},
      {{"--threads=x"}, "--threads: \"x\": expected a number from 0 to 1024"},
      {{"--threads=-1"}, "--threads: \"-1\": expected a number from 0 to 1024"},
      {{"--adaptive-windows=yes"}, "--adaptive-windows: \"yes\": expected true or false"},
      {{"--max-streams=0"}, "--max-streams: \"0\": expected a number from 1 to 1000000"},
      {{"--default-codec=int4|int9"},
       "--default-codec: \"int4|int9\": unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"},
      {{"--memory-budget=1"},
       "--memory-budget: \"1\": expected at least 1MiB, which one block of 131072 F32 values takes, as input and as "
       "output"},
      {{"--memory-budget=1023KiB"},
       "--memory-budget: \"1023KiB\": expected at least 1MiB, which one block of 131072 F32 values takes, as input and "
       "as output"},
      {{"--memory-budget=1GB"},
       "--memory-budget: \"1GB\": expected a number of bytes, at most 1024TiB, with or without KiB, MiB, GiB or TiB"},
      {{"--memory-budget=2000TiB"},
       "--memory-budget: \"2000TiB\": expected a number of bytes, at most 1024TiB, with or without KiB, MiB, GiB or "
       "TiB"},
      {{"--listen=50051"},
       "--listen: \"50051\": expected HOST:PORT or unix:PATH, for example 127.0.0.1:50051 or [::1]:0"},
      {{"--listen=a:70000"},
       "--listen: \"a:70000\": expected HOST:PORT or unix:PATH, for example 127.0.0.1:50051 or [::1]:0"},
      {{"--listen=unix:"}, "--listen: \"unix:\": expected a path of 1 to 107 bytes behind unix:"},
      {{"--healthcheck-target=127.0.0.1:0"},
       "--healthcheck-target: \"127.0.0.1:0\": expected HOST:PORT, with a port from 1 to 65535, or unix:PATH"},
      {{"--healthcheck-target=a:65536"},
       "--healthcheck-target: \"a:65536\": expected HOST:PORT, with a port from 1 to 65535, or unix:PATH"},
      {{"--healthcheck-target=unix:"},
       "--healthcheck-target: \"unix:\": expected a path of 1 to 107 bytes behind unix:"},
      {{"--foreign-memory=vllm_offload_"}, "--foreign-memory needs --shared-memory"},
      {{"--shared-memory=/a"},
       "--shared-memory: \"/a\": expected 1 to 128 characters of [A-Za-z0-9._-], for example kvcompress-, or off"},
      {{"--unix-socket-mode=rw"}, "--unix-socket-mode: \"rw\": expected permissions in octal, for example 0660"},
      {{"--unix-socket-mode=1777"}, "--unix-socket-mode: \"1777\": expected permissions in octal, for example 0660"},
      {{"--metrics-listen=9464"}, "--metrics-listen: \"9464\": expected HOST:PORT or off"},
      {{"--default-codec=int9"},
       "--default-codec: unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"},
      {{"--drain-timeout=30"}, "--drain-timeout: \"30\": expected a duration such as 30s or 1m30s, at most 24h"},
      {{"--log-level=loud"}, "--log-level: \"loud\": expected one of debug, info, warning, error"},
      {{"--log-format=xml"}, "--log-format: \"xml\": expected one of text, json"},
      {{"--healthcheck=maybe"}, "--healthcheck: \"maybe\": expected true or false"},
      {{"--tls-cert="}, "--tls-cert: \"\": expected the name of a file"},
      {{"--tls-client-ca", ""}, "--tls-client-ca: \"\": expected the name of a file"},
      {{"--token-file="}, "--token-file: \"\": expected the name of a file"},
      {{"--max-connections=0"}, "--max-connections: \"0\": expected a number from 1 to 1000000"},
      {{"--handshake-timeout=5"}, "--handshake-timeout: \"5\": expected a duration such as 30s or 1m30s, at most 24h"},
      {{"--handshake-timeout=0s"}, "--handshake-timeout: \"0s\": expected at least 100ms"},
      {{"--allow-plaintext="}, "--allow-plaintext: \"\": expected true or false"},
      {{"--config=/nowhere"}, "config /nowhere: no such file or directory"},
      {{"--config=/"}, "config /: is a directory"},
  };
  for (const auto& test : cases) {
    EXPECT_THAT(Parse(test.args), StatusIs(absl::StatusCode::kInvalidArgument, test.text));
  }
  EXPECT_THAT(
      Parse({}, {{"KV_COMPRESSD_THREADS", "many"}}),
      StatusIs(absl::StatusCode::kInvalidArgument, "KV_COMPRESSD_THREADS: \"many\": expected a number from 0 to 1024"));
}

TEST(OptionsTest, FaultsOfTheFile) {
  const struct {
    std::string json;
    std::string text;
  } cases[] = {
      {"[]", ": not a JSON object"},
      {"{\"threads\": 1", ": not valid JSON: it ends too early"},
      {R"({"threads": 1, "threads": 2})", ": not valid JSON: the second \"threads\" of an object at byte 24"},
      {std::string("{\"threads\": 1}\0rubbish", 22), ": not valid JSON: a zero byte at byte 15"},
      {R"({"thread": 1})", ": thread is not a setting"},
      {R"({"config": "x"})", ": config is not a setting"},
      {R"({"help": true})", ": help is not a setting"},
      {R"({"threads": 1.5})", ": threads: expected a text, a whole number or a list of texts"},
      {R"({"listen": [1]})", ": listen: expected a list of texts"},
      {R"({"threads": "x"})", ": threads: \"x\": expected a number from 0 to 1024"},
  };
  for (const auto& test : cases) {
    const std::string path = ConfigFile(test.json);
    EXPECT_THAT(Parse({"--config", path}), StatusIs(absl::StatusCode::kInvalidArgument, "config " + path + test.text));
  }
}

TEST(OptionsTest, UsageNamesEveryFlag) {
  for (const char* flag : {"--listen ADDRESS", "--config FILE", "--healthcheck ", "--drain-timeout DURATION"}) {
    EXPECT_THAT(OptionsUsage(), HasSubstr(flag));
  }
}

}  // namespace
}  // namespace kvcompress
