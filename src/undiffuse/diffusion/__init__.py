"""Diffusion models, one idea a file. To learn the subject, read the files in this order.

process         the forward process: how noise is added to an image; the posterior; (1) to (5)
schedule        noise schedules: how much image and how much noise there is at each time
denoiser        from a network to the denoised image x_0_hat; the predictions
objectives/     what the network learns from a batch; the loss (6)
weightings      how much each noise level counts in the loss
times           which noise levels training samples
step            what a sampler sees of one step, from x_t to x_s
samplers        (7), (8), DDIM, Heun and DPM-Solver++ 2M
multistep       samplers with a memory of several steps
stochastic      samplers that add noise in other ways
grids           the times that sampling visits
guidance        wrappers of the denoise function: guidance and clipping
conditioning    what the network is conditioned on: classes and clusters
walk            the sampling loop, from any time to any other
sampling        new images from pure noise, with all of the above
likelihood      how many bits an image takes: the variational bound, and the exact likelihood

Notation: an image is x_0, (C, H, W), and B is the number of images in a batch. Time t is 0 for the
data and 1 for the noise. A noisy image is x_t = alpha(t) x_0 + sigma(t) eps, with standard normal
noise eps. The log-SNR is log(alpha^2 / sigma^2). The numbers (1) to (8) are the equations of the
course handout.
"""
