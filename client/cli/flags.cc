#include "client/cli/flags.h"

namespace kvcompress {
namespace {

void DeclareCompression(GoFlags& flags, CliOptions& options) {
  flags.Group("Compress", "kv-compress -input cache.safetensors -output small.safetensors -codec lossless");
  flags.String(
      "input", &options.input, "string",
      "Input safetensors file path; also an index of shards (*.index.json), - or a pipe, a raw dump (docs/cli.md)");
  flags.String("output", &options.output, "string",
               "Output file path (required unless -metrics-only, -inspect or -sweep)");
  flags.String(
      "codec", &options.codec, "SPEC",
      "Codec chain in place of INT4, or its name, for example raw|zstd, kv3 or lossless; help lists all; of -sweep "
      "several, with blanks between");
  flags.String(
      "artifacts", &options.artifacts, "DIR",
      "Directory of the artifacts that codecs name, as in kv(bits=3,artifact=ID): files *.kvcal, made by -calibrate");
  flags.Float("bits", &options.bits,
              "Budget: keys and values take so many bits a value (1.5-8), short for -codec kv(bits=B)");
  flags.String(
      "profile", &options.profile, "FILE",
      "JSON file that chooses a codec for each tensor; a compression_config.json, with ranks of heads for -codec");
  flags.Int("group-size", &options.group_size, "Quantization group size (32, 64, or 128)");
  flags.Float("sparsity", &options.sparsity,
              "Fraction of the values, the smallest, that becomes zero first (0.0-1.0, 0=disabled)");
  flags.String("on-nonfinite", &options.on_nonfinite, "error|lossless",
               "NaN, infinity or a value too large for the codec: error, or lossless for the block of 131072 values");
  flags.String("fingerprint", &options.fingerprint, "HEX",
               "Whose the tensors are: 1 to 64 bytes that each frame carries; with -decompress, that each must have");
  flags.Bool("metrics-only", &options.metrics_only, "Report sizes and errors, and write no output");
  flags.Bool("verbose", &options.verbose, "Tell of each tensor on standard error, and in the JSON (tensor_metrics)");
  flags.Int("threads", &options.threads,
            "Threads of the codec in this process (0=one for each CPU); -sweep takes 1 "
            "unless this is given");
  flags.Duration("timeout", &options.timeout, "Give up after this time, for example 30s (0=never)");

  flags.Group("Decompress", "kv-compress -decompress -input small.safetensors -output back.safetensors");
  flags.Bool("decompress", &options.decompress, "Decompress -input, a file that this program has written");

  flags.Group("Bounds that choose the codec",
              "kv-compress -min-snr 40 -input cache.safetensors -output small.safetensors");
  flags.Float("min-snr", &options.min_snr, "Bound: every tensor keeps an SNR and a token SNR of at least so many dB");
  flags.Float("min-token-snr", &options.min_token_snr, "Bound: every tensor keeps a token SNR of at least so many dB");
  flags.Float("max-error", &options.max_error, "Bound: no value is off by more");
  flags.Float("min-cosine", &options.min_cosine, "Bound: every tensor keeps at least this cosine similarity (0.0-1.0)");
}

void DeclareDaemon(GoFlags& flags, CliOptions& options) {
  flags.Group("Use a daemon", "kv-compress -server 127.0.0.1:50051 -input cache.safetensors -output small.safetensors");
  flags.String(
      "server", &options.server, "ADDRESS",
      "Daemon that does the work, instead of this process: HOST:PORT, unix:PATH, a list with commas of IP:PORT or "
      "unix:PATH, or dns:///HOST:PORT for all addresses of a name (environment: KV_COMPRESS_SERVER)");
  flags.String("token-file", &options.token_file, "FILE",
               "File whose first line is the bearer token for the server (KV_COMPRESS_TOKEN_FILE)");
  flags.Bool("tls", &options.tls, "Speak TLS to the server; the flags -tls-... imply it (KV_COMPRESS_TLS=true)");
  flags.String("tls-ca", &options.tls_ca, "FILE",
               "Authorities that vouch for the server, in PEM, in place of the system's (KV_COMPRESS_TLS_CA)");
  flags.String("tls-cert", &options.tls_cert, "FILE",
               "Certificate to show to the server, in PEM (KV_COMPRESS_TLS_CERT)");
  flags.String("tls-key", &options.tls_key, "FILE", "Private key of -tls-cert, in PEM (KV_COMPRESS_TLS_KEY)");
  flags.String("tls-server-name", &options.tls_server_name, "NAME",
               "Name that the server's certificate must have, in place of its host (KV_COMPRESS_TLS_SERVER_NAME)");
}

void DeclareInspection(GoFlags& flags, CliOptions& options) {
  flags.Group("Inspect", "kv-compress -inspect cache.safetensors");
  flags.Bool("inspect", &options.inspect, "List what a file holds: -inspect FILE");
  flags.String("format", &options.format, "FORMAT",
               "What -inspect writes: table, json or csv; and -sweep: json or table");
  flags.Bool("per-head", &options.per_head, "With -inspect of a plain file: also each head's figures");

  flags.Group("Compare all codecs", "kv-compress -sweep -input cache.safetensors -report codecs.html");
  flags.Bool("sweep", &options.sweep, "Try all codecs on the input, in memory, and report ratio, loss and speed");
  flags.String("report", &options.report, "FILE", "HTML page for -sweep to write");
  flags.String("bandwidth", &options.bandwidth, "RATE,...",
               "With -sweep: links that caches go over, for example 25Gbit/s,3GB/s: when each codec pays on them");
  flags.Int("context-tokens", &options.context_tokens,
            "With -bandwidth: tokens that are loaded before the first token of an answer");
  flags.Float("max-key-mae", &options.max_key_mae, "With -sweep: limit on the mean absolute error of keys");
  flags.Float("max-value-mae", &options.max_value_mae, "With -sweep: limit on the mean absolute error of values");
  flags.Float("min-key-cosine", &options.min_key_cosine, "With -sweep: limit on the cosine similarity of keys");
  flags.Float("min-value-cosine", &options.min_value_cosine, "With -sweep: limit on the cosine similarity of values");
}

void DeclareCalibration(GoFlags& flags, CliOptions& options) {
  flags.Group("Calibrate", "kv-compress -calibrate -input a.safetensors,b.safetensors -output model.kvcal");
  flags.Bool("calibrate", &options.calibrate,
             "Make a model's artifact (-output) from caches of its keys and values: -input FILE,FILE,...");
  flags.String("weights", &options.weights, "FILE",
               "With -calibrate: what errors cost, layer_{i}_key|value [groups, dim, dim] in a safetensors file");
  flags.String("config", &options.config, "FILE",
               "With -calibrate: a compression_config.json, for whose ranks heads are taken singly (then -profile)");
  flags.Int("group-dim", &options.group_dim, "With -calibrate: channels that are taken together (64, 128, or 256)");

  flags.Group("Rotary embedding of keys", "kv-compress -inspect -rope-theta 10000 cache.safetensors");
  flags.Float("rope-theta", &options.rope_theta,
              "Base of the keys' rotary embedding, in place of what the file's metadata say (rope_theta): for codecs "
              "that undo it, and -calibrate; with -inspect of a plain file, also what its keys would be without it");
  flags.String("rope-pairs", &options.rope_pairs, "PAIRS",
               "With -rope-theta: which channels turn together, half (i and i + d/2) or interleaved (2i and 2i + 1)");
  flags.Int("rope-dims", &options.rope_dims, "With -rope-theta: the first channels, which alone are turned (0=all)");
  flags.Int("rope-offset", &options.rope_offset, "With -rope-theta: the first channel that turns");
  flags.String(
      "rope-scaling", &options.rope_scaling, "JSON",
      "With -rope-theta: rope_scaling of the model's configuration, of type linear, llama3 or yarn, for example "
      "'{\"rope_type\": \"llama3\", \"factor\": 8}'");
  flags.Int("rope-start", &options.rope_start,
            "Position of a tensor's first token, in place of what the metadata say (seq_start)");

  flags.Group("About the program", "kv-compress -version");
  flags.Bool("version", &options.version, "Print the version");
}

}  // namespace

void DeclareFlags(GoFlags& flags, CliOptions& options) {
  DeclareCompression(flags, options);
  DeclareDaemon(flags, options);
  DeclareInspection(flags, options);
  DeclareCalibration(flags, options);
}

}  // namespace kvcompress
