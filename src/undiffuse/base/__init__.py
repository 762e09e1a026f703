"""The basis: modules that every other package uses. None of them knows anything of diffusion.

errors     the one error that a user can cause
table      functions by name: one new schedule, sampler or network is added in one place
rng        random numbers as a function of where they are used
pixels     images as bytes and as floats
images     images as pictures: grids, animations, PNG and GIF files
files      files that are written whole or not at all
tensors    tensors in files, with a checksum
cache      tensors that can be computed again, kept for the next time
engine     what this machine can do: bfloat16, compiler, versions
lazy       modules that are imported when they are first used
"""
