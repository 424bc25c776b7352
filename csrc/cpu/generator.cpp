#include "cpu/generator.h"

#include <algorithm>

#include "cpu/team.h"

namespace metatasnet {
namespace {

constexpr std::int64_t kOutputs = 128 * kExpanded;  // outputs that one job computes

struct Job {
  std::size_t layer;
  std::int64_t first, last;
};

std::vector<Job> jobs_of(const std::vector<GeneratedLayer>& layers) {
  std::vector<Job> jobs;
  for (std::size_t l = 0; l < layers.size(); ++l)
    for (std::int64_t first = 0; first < layers[l].outputs; first += kOutputs)
      jobs.push_back({l, first, std::min(layers[l].outputs, first + kOutputs)});
  return jobs;
}

// Call run(args, number of the job) for each job, on several threads.
template <class Run>
void each_job(const std::vector<Job>& jobs, const std::vector<GeneratedLayer>& layers, int instruments, int width,
              int threads, Run run) {
  const auto count = static_cast<std::int64_t>(jobs.size());
  Tickets tickets(count);
  run_team(static_cast<int>(std::min<std::int64_t>(threads, count)), [](int) {}, [&](int) {
    std::vector<float> scratch(2 * static_cast<std::size_t>(width) * kExpanded);
    for (std::int64_t ticket; (ticket = tickets.draw()) >= 0;) {
      const Job& job = jobs[ticket];
      const GeneratedLayer& layer = layers[job.layer];
      ExpandArgs args{};
      args.outputs = layer.outputs;
      args.first = job.first;
      args.last = job.last;
      args.instruments = instruments;
      args.width = width;
      args.hidden = layer.hidden;
      args.kernel = layer.kernel;
      args.bias = layer.bias;
      args.out = layer.out;
      args.kernel_gradient = layer.kernel_gradient;
      args.bias_gradient = layer.bias_gradient;
      args.scratch = scratch.data();
      run(args, ticket);
    }
  });
}

}  // namespace

void expand(const Kernels& kernels, const std::vector<GeneratedLayer>& layers, int instruments, int width, int threads) {
  each_job(jobs_of(layers), layers, instruments, width, threads,
           [&](const ExpandArgs& args, std::int64_t) { kernels.float32.expand(args); });
}

void expand_gradient(const Kernels& kernels, const std::vector<GeneratedLayer>& layers, int instruments, int width,
                     int threads) {
  const std::vector<Job> jobs = jobs_of(layers);
  const std::size_t values = static_cast<std::size_t>(instruments) * width;
  std::vector<double> shares(jobs.size() * values);
  each_job(jobs, layers, instruments, width, threads, [&](ExpandArgs& args, std::int64_t job) {
    args.hidden_gradient = shares.data() + job * values;
    kernels.float32.expand_gradient(args);
  });
  std::vector<double> sums(values);
  for (std::size_t job = 0; job < jobs.size(); ++job) {
    if (jobs[job].first == 0) std::fill(sums.begin(), sums.end(), 0.0);
    for (std::size_t k = 0; k < values; ++k) {
      sums[k] += shares[job * values + k];
      layers[jobs[job].layer].hidden_gradient[k] = static_cast<float>(sums[k]);
    }
  }
}

}  // namespace metatasnet
