// Functions of vectors that every instruction set shares. Included after the vectors.

// e^x for x <= 88. Below -110 the result is exactly 0, also for minus infinity. Relative error
// below 2e-7: degree 6 on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients, S. Moshier).
inline Vec exp(Vec x) {
  x = max(x, splat(-110.0f));
  const Vec n = nearest(mul(x, splat(1.44269504f)));
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, splat(1.0f)));
  return ldexp(p, n);
}

// x / (1 + e^-x); the clamp keeps e^-x finite, where the quotient is below 1e-36 anyway.
inline Vec silu(Vec x) {
  const Vec e = exp(sub(zero(), max(x, splat(-87.0f))));
  return div(x, add(splat(1.0f), e));
}
