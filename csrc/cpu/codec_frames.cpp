#include "cpu/codec_frames.h"

#include <algorithm>
#include <vector>

#include "cpu/team.h"

namespace metatasnet {
namespace {

constexpr int kTaskTiles = 6;  // tiles that one thread adds in a row; only frames at their ends are computed twice

}  // namespace

Interpolation::Interpolation(std::int64_t first, int rows, std::int64_t frames, std::int64_t mel_frames) {
  const double scale = frames > 1 ? static_cast<double>(mel_frames - 1) / static_cast<double>(frames - 1) : 0.0;
  for (int r = 0; r < rows; ++r) {
    const double position = scale * static_cast<double>(first + r);
    frame[r] = std::min(static_cast<std::int64_t>(position), mel_frames - 1);
    next[r] = std::min(frame[r] + 1, mel_frames - 1);
    weight[r] = static_cast<float>(position - static_cast<double>(frame[r]));
  }
}

void copy_padded(const float* values, std::int64_t length, std::int64_t first, std::int64_t count, float* to) {
  const std::int64_t begin = std::clamp<std::int64_t>(-first, 0, count);
  const std::int64_t end = std::clamp<std::int64_t>(length - first, begin, count);
  std::fill(to, to + begin, 0.0f);
  std::copy(values + first + begin, values + first + end, to + begin);
  std::fill(to + end, to + count, 0.0f);
}

void overlapping(const Stage& stage, std::int64_t n, std::int64_t samples, float* signal, int threads,
                 const std::function<void(int)>& prepare, const std::function<void(const OverlapTile&)>& add) {
  const StageSizes& s = stage.sizes();
  const std::int64_t frames = samples / s.W;
  const std::int64_t halo = (s.padding() + s.W - 1) / s.W;  // frames on each side that overlap a frame's samples
  const std::int64_t computed = std::max<std::int64_t>(kTaskTiles, (8 * halo + kTile - 1) / kTile) * kTile;
  const std::int64_t useful = computed - 2 * halo, tasks = (frames + useful - 1) / useful;
  const std::int64_t window = window_of(s, computed);
  std::vector<Block> room;
  Tickets tickets(n * tasks);
  run_team(
      static_cast<int>(std::min<std::int64_t>(threads, n * tasks)),
      [&](int team) {
        for (int i = 0; i < team; ++i) room.push_back(stage.pool().take_of<float>(window));
        prepare(team);
      },
      [&](int member) {
        for (std::int64_t ticket; (ticket = tickets.draw()) >= 0;) {
          const std::int64_t item = ticket / tasks;
          const std::int64_t begin = ticket % tasks * useful, end = std::min(frames, begin + useful);
          const std::int64_t from = std::max<std::int64_t>(0, begin - halo), to = std::min(frames, end + halo);
          float* sums = room[member].as<float>();
          std::fill(sums, sums + window, 0.0f);
          for (std::int64_t first = from; first < to; first += kTile) {
            add({member, item, first, begin, end, static_cast<int>(std::min<std::int64_t>(kTile, to - first)),
                 sums + (first - from) * s.W});
          }
          const float* result = sums + (begin - from) * s.W + s.padding();
          const std::int64_t last = end == frames ? samples : end * s.W;  // the last filters extend beyond the last frame
          std::copy(result, result + last - begin * s.W, signal + item * samples + begin * s.W);
        }
      });
}

}  // namespace metatasnet
