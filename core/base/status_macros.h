#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function when `expr` is not OK.
#define KVC_RETURN_IF_ERROR(expr)                                              \
  do {                                                                         \
    if (absl::Status kvc_status = (expr); !kvc_status.ok()) return kvc_status; \
  } while (false)

#define KVC_CONCAT_INNER(a, b) a##b
#define KVC_CONCAT(a, b) KVC_CONCAT_INNER(a, b)

// Evaluates an absl::StatusOr<T> expression; returns its status when it is not OK, else moves its value to `lhs`.
#define KVC_ASSIGN_OR_RETURN(lhs, expr) KVC_ASSIGN_OR_RETURN_IMPL(KVC_CONCAT(kvc_statusor_, __LINE__), lhs, expr)
#define KVC_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return tmp.status();             \
  lhs = *std::move(tmp)
