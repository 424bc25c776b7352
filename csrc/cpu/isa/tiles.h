// The tile registers of AMX: eight of 16 rows of 64 bytes, and a unit that multiplies them.
//
// Tiles belong to the thread, and every call may change them (System V psABI: caller-saved), so a product configures
// them when it begins and releases them when it ends; a thread that holds none costs the system nothing to switch.
// Source: Intel SDM volume 1, chapter 18, and volume 2, LDTILECFG, TDPBF16PS.
#pragma once

#include "cpu/isa/vector.h"

#if defined(__AMX_BF16__)

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define METATASNET_SHOW_TILES 1
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define METATASNET_SHOW_TILES 1
#endif

namespace metatasnet::METATASNET_ISA {

constexpr int kTileHeight = 16;  // rows of a tile: frames of A and C, units of k of B
constexpr int kTileUnits = 16;   // units of k in a row of A
constexpr std::ptrdiff_t kTileBytes = 64;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "as LDTILECFG reads it");

// Make earlier stores visible to the tile instructions that follow: GCC's intrinsics do not declare what they read.
METATASNET_INLINE void publish(const void* memory) { __asm__ volatile("" ::"r"(memory) : "memory"); }

METATASNET_INLINE void configure_tiles() {
  const TileConfig config;
  publish(&config);
  _tile_loadconfig(&config);
}

// The sanitizers do not see what a tile instruction reads, so it is reported to them here.
METATASNET_INLINE void show_tile(const char* at, std::ptrdiff_t stride) {
#if defined(METATASNET_SHOW_TILES)
  for (int i = 0; i < kTileHeight; ++i)
    for (std::ptrdiff_t byte = 0; byte < kTileBytes; ++byte)
      static_cast<void>(*static_cast<const volatile char*>(at + i * stride + byte));
#else
  static_cast<void>(at);
  static_cast<void>(stride);
#endif
}

}  // namespace metatasnet::METATASNET_ISA

#endif
