// The masking network: each (item, instrument) depth-first through all blocks, by one thread or a small team.
//
// One unit of work, an (item, instrument), needs nothing from the others until the softmax, so its activations stay in
// one core's cache and its group norms need no other thread. Where there are more threads than units, teams of threads
// split a unit's frames, with a barrier at each group norm. Tiles, and the order in which their moments are merged, are
// the same for every number of threads, and so are the results, bit for bit.
#include "cpu/masking_run.h"

namespace metatasnet {
MaskSeconds& MaskSeconds::operator+=(const MaskSeconds& other) {
  source_moments += other.source_moments;
  input_conv += other.input_conv;
  block_input += other.block_input;
  depthwise += other.depthwise;
  skip_output += other.skip_output;
  mask_output += other.mask_output;
  mask_product += other.mask_product;
  fold += other.fold;
  return *this;
}

void MaskingRun::prepare(int threads) {
  team_size_ = team_size(n_ * s_.instruments, threads);
  const std::int64_t teams = std::min<std::int64_t>(threads / team_size_, n_ * s_.instruments);
  everyone_ = std::make_unique<Barrier>(threads);
  for (std::int64_t t = 0; t < teams; ++t) teams_.push_back(std::make_unique<Team>(*this));
  for (int t = 0; t < threads; ++t) members_.push_back(std::make_unique<Member>(*this));
}

void MaskingRun::run(int thread) {
  Member& member = *members_[thread];
  for (std::int64_t ticket; (ticket = input_tickets_.draw()) >= 0;) {
    const Lap lap(member.seconds.source_moments);
    const std::int64_t copy = ticket / tiles_;
    source_moments(at(input_, copy / copies_, static_cast<int>(copy % copies_)), static_cast<int>(ticket % tiles_),
                   input_moments(copy), ld_n_);
  }
  everyone_->wait();
  const int index = thread / team_size_;
  if (index < static_cast<int>(teams_.size())) {
    Team& team = *teams_[index];
    const int place = thread % team_size_;
    for (;;) {
      if (place == 0) team.unit = unit_tickets_.draw();
      team.barrier.wait();
      const std::int64_t unit = team.unit;
      if (unit < 0) break;
      separate(unit, team, member, place);
      team.barrier.wait();
    }
  }
  everyone_->wait();
  const Lap lap(member.seconds.mask_product);
  for (std::int64_t ticket; (ticket = product_tickets_.draw()) >= 0;) {
    product(ticket / tiles_, static_cast<int>(ticket % tiles_));
  }
}

void MaskingRun::product(std::int64_t item, int tile) {
  const std::int64_t first = static_cast<std::int64_t>(tile) * kTile;
  MaskProductArgs args{};
  args.rows = rows_of(frames_, tile);
  args.latent = at(at(latent_, item, 0), first * latent_.source.stride);
  args.ld = ld_n_;
  args.instruments = s_.instruments;
  args.softmax = s_.softmax;
  MaskOperand operands[kMostInstruments];
  args.operands = operands;
  for (int i = 0; i < s_.instruments; ++i) {
    const std::int64_t unit = item * s_.instruments + i;
    const Affine& norm = mask_norms_[unit];
    operands[i] = {masked_ + (unit * frames_ + first) * ld_n_ * passes_.storage_size, norm.scale.data(),
                   norm.mean.data(), norm.shift.data()};
  }
  passes_.mask_product(args);
}

MaskSeconds Stage::mask(std::int64_t n, std::int64_t frames, const Latents& latent, const Latents& input,
                        const Latents& partial, void* masked, void* kept, int threads) const {
  if (n == 0 || frames == 0) return {};
  prefer_huge_pages(masked, static_cast<std::size_t>(n) * sizes_.instruments * frames * latent_ld() * passes_->storage_size);
  MaskingRun run(*this, n, frames, latent, input, partial, masked, kept);
  run_team(threads, [&](int team) { run.prepare(team); }, [&](int thread) { run.run(thread); });
  return run.seconds();
}

std::int64_t Stage::kept_mask(std::int64_t n, std::int64_t frames) const {
  return n * sizes_.instruments * KeptMask(sizes_, passes_->storage_size, frames).bytes();
}

}  // namespace metatasnet
