#pragma once

// Compiles a function for several instruction sets where the platform can choose at load time.
// Sanitizers start after the loader chooses between clones, and would crash in that choice.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && defined(__linux__) && \
    !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_UNDEFINED__)
#define SPECDEC_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SPECDEC_CLONES
#endif

// Into every clone: a large function would else be compiled once, for the least of them. The second
// stands behind a lambda's parameters.
#if defined(__GNUC__)
#define SPECDEC_INLINE inline __attribute__((always_inline))
#define SPECDEC_INLINE_LAMBDA __attribute__((always_inline))
#else
#define SPECDEC_INLINE inline
#define SPECDEC_INLINE_LAMBDA
#endif
