// The device code, compiled for the host.
#include "cuda/codec.cu"
#include "cuda/masking.cu"
#include "cuda/products.cu"
#include "cuda/stage.cu"
