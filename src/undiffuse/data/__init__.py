"""Data sets: images to learn from.

loading     MNIST, which comes with the package, and folders of images
dataset     what a data set is: images in a store, their classes, and which rows of the store it has
idx         IDX files, the format of MNIST
npy         .npy and .npz files of NumPy
arrays      data sets of arrays: which one holds what
pictures    image files
values      values of pixels: numbers of any kind become bytes
splits      random subsets, and the images that are held out for validation
clusters    clusters of similar images, found by k-means
batches     which images each training step sees
"""
