// The device code, compiled for the host.
#include "cuda/codec.cu"
#include "cuda/masking.cu"
#include "cuda/products_bfloat16.cu"
#include "cuda/products_float32.cu"
#include "cuda/products_tf32.cu"
#include "cuda/stage.cu"
