//! What a picture looks like, in six numbers that need no model: is it dark, flat, blurred, grey, of another size?
//!
//! At most [`MAX_LOOKS`] numbers of a picture are read, at fixed places, so that a large one costs no more than a
//! small one and two devices that see the same picture say the same.

/// Numbers of a picture that are read at most: of each place the pixel, and one number of its four neighbours.
pub const MAX_LOOKS: usize = 4_096;
/// Of the numbers, in their order.
pub const NAMES: [&str; 6] = ["luma", "contrast", "sharpness", "saturation", "width", "height"];

/// By [`NAMES`]: mean luma (ITU-R 601), its standard deviation, variance of the Laplacian (4 neighbours; of colours
/// that of green, which is most of luma and less than half of the numbers), mean saturation (HSV, 0 to 1), pixels of the sides. In the unit of the pixels, but for the last three. NaN is what
/// cannot be said: anything of an empty picture, sharpness without a pixel that has four neighbours, saturation of
/// grey, everything where a pixel is no number.
pub type Appearance = [f64; 6];

/// `channels`: numbers of a pixel, 1 or more; `pixel` gives one of them by row, column and channel: the first of grey,
/// the first three of colours.
pub fn appearance(
    [height, width]: [usize; 2],
    channels: usize,
    pixel: impl Fn(usize, usize, usize) -> f64,
) -> Appearance {
    let step = step(height, width, channels);
    let is_colour = channels >= 3;
    let sharp = usize::from(is_colour);
    let (mut bright, mut edges, mut saturation) = (Spread::default(), Spread::default(), 0.0);
    for y in (step / 2..height).step_by(step) {
        for x in (step / 2..width).step_by(step) {
            let centre = pixel(y, x, sharp);
            if !is_colour {
                bright.take(centre);
            } else {
                let (red, blue) = (pixel(y, x, 0), pixel(y, x, 2));
                bright.take(0.299 * red + 0.587 * centre + 0.114 * blue);
                let (max, min) = (red.max(centre).max(blue), red.min(centre).min(blue));
                saturation += if max > 0.0 { ((max - min) / max).min(1.0) } else { 0.0 };
            }
            if y > 0 && x > 0 && y + 1 < height && x + 1 < width {
                let near = |y: usize, x: usize| pixel(y, x, sharp);
                let around = near(y - 1, x) + near(y + 1, x) + near(y, x - 1) + near(y, x + 1);
                edges.take(4.0 * centre - around);
            }
        }
    }
    let saturation = if is_colour { saturation / bright.n } else { f64::NAN };
    let contrast = bright.variance().sqrt();
    [bright.mean(), contrast, edges.variance(), saturation, width as f64, height as f64]
}

/// Distance of the places in pixels.
fn step(height: usize, width: usize, channels: usize) -> usize {
    let places = MAX_LOOKS / (5 * channels.clamp(1, 3));
    let cost = |step: usize| height.div_ceil(step).saturating_mul(width.div_ceil(step));
    let guess = ((height as f64 * width as f64 / places as f64).sqrt() as usize).max(1);
    (guess..).find(|step| cost(*step) <= places).unwrap_or(guess)
}

/// Of values whose mean is of the size of their spread or a few hundred times it: pixels.
#[derive(Default)]
struct Spread {
    n: f64,
    first: f64,
    sum: f64,
    squares: f64,
}
impl Spread {
    fn take(&mut self, x: f64) {
        if self.n == 0.0 {
            self.first = x;
        }
        let x = x - self.first;
        self.n += 1.0;
        self.sum += x;
        self.squares += x * x;
    }
    fn mean(&self) -> f64 {
        self.first + self.sum / self.n
    }
    fn variance(&self) -> f64 {
        let mean = self.sum / self.n;
        let variance = self.squares / self.n - mean * mean;
        if variance < 0.0 { 0.0 } else { variance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    #[test]
    fn a_small_picture_is_read_as_a_whole() {
        // By numpy: a.mean(), a.std(), the variance of 4 a[1:-1,1:-1] minus its four neighbours.
        let pixels = [[1.0, 2.0, 3.0, 4.0], [5.0, 9.0, 7.0, 8.0], [0.0, 2.0, 4.0, 1.0]];
        let found = appearance([3, 4], 1, |y, x, _| pixels[y][x]);
        assert!((found[0] - 46.0 / 12.0).abs() < 1e-12, "{found:?}");
        assert!((found[1] - 2.793842435706702).abs() < 1e-12, "{found:?}");
        // Laplacians: 4*9-2-2-5-7 = 20 and 4*7-3-4-9-8 = 4.
        assert_eq!((found[2], found[4], found[5]), (64.0, 4.0, 3.0));
        assert!(found[3].is_nan(), "grey has no saturation");
    }

    #[test]
    fn colours_have_luma_and_saturation() {
        let found = appearance([2, 2], 3, |_, _, channel| [1.0, 0.5, 0.0][channel]);
        assert!((found[0] - 0.5925).abs() < 1e-12 && found[1] == 0.0 && found[3] == 1.0, "{found:?}");
        assert!(found[2].is_nan(), "no pixel has four neighbours");
        assert_eq!(appearance([2, 2], 3, |_, _, _| 0.0)[3], 0.0, "black");
    }

    #[test]
    fn colours_are_as_sharp_as_their_green() {
        let pixels = [[1.0, 2.0, 3.0, 4.0], [5.0, 9.0, 7.0, 8.0], [0.0, 2.0, 4.0, 1.0]];
        let green = appearance([3, 4], 3, |y, x, channel| if channel == 1 { pixels[y][x] } else { 5.0 });
        assert_eq!(green[2], appearance([3, 4], 1, |y, x, _| pixels[y][x])[2]);
    }

    #[test]
    fn what_cannot_be_said_is_nan() {
        assert!(appearance([0, 5], 1, |_, _, _| 0.0)[..4].iter().all(|x| x.is_nan()));
        let odd = appearance([9, 9], 3, |y, _, _| if y == 4 { f64::NAN } else { 1.0 });
        assert!(odd[0].is_nan() && odd[1].is_nan() && odd[2].is_nan(), "{odd:?}");
    }

    proptest! {
        #[test]
        fn a_picture_of_any_size_costs_a_bounded_number_of_looks(
            height in 0usize..5_000, width in 0usize..5_000, channels in 1usize..5,
        ) {
            let looks = Cell::new(0);
            appearance([height, width], channels, |_, _, _| { looks.set(looks.get() + 1); 0.0 });
            prop_assert!(looks.get() <= MAX_LOOKS, "{}", looks.get());
            if height > 100 && width > 100 {
                prop_assert!(looks.get() >= MAX_LOOKS / 16, "{}", looks.get());
            }
        }
    }
}
