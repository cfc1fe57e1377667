"""Backends: the same few functions, for different machines.

A backend is a module with these functions; x is the feature map (N, C, *S), and everything
per plane is an (N, C) tensor in the statistics' type (``reference.statistics_dtype``):

``refuses(x, weight, bias)``
    None, or the reason why it does not take this call.
``moments(x)``
    ``mean, var`` of each plane; var is biased (divided by the number of elements).
``apply(x, mean, scale, shift)``
    ``(x - mean) * scale + shift``, in x's dtype and memory layout.
``gradient_sums(gradient, x, mean)``
    ``sum(gradient)`` and ``sum(gradient * (x - mean))`` over each plane.
``apply_gradient(gradient, x, mean, a, b, c)``
    ``a * gradient + b * (x - mean) + c``, in x's dtype and memory layout.
``normalize(x, weight, bias, eps)`` and ``normalize_backward(gradient, x, mean, var, weight, eps)``
    moments and apply in one visit of each plane, for the pool of one plane, and its backward.
"""
