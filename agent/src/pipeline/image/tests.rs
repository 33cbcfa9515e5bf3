use super::geometry::{Letterbox, crop, resize};
use super::*;
use edgefleet_shared::bundle::pipeline::{Anchor, Filter};
use proptest::prelude::*;

const FILTERS: [Filter; 9] = [
    Filter::PilNearest,
    Filter::PilBox,
    Filter::PilBilinear,
    Filter::PilHamming,
    Filter::PilBicubic,
    Filter::PilLanczos,
    Filter::CvNearest,
    Filter::CvLinear,
    Filter::CvArea,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A point of the picture, taken to the model's input and back, is where it was.
    #[test]
    fn a_letterbox_is_undone_by_its_placement(
        (height, width) in (1..300usize, 1..300usize),
        (to_height, to_width) in (8..100usize, 8..100usize),
        enlarge: bool,
        corner: bool,
        (x, y) in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let anchor = if corner { Anchor::TopLeft } else { Anchor::Center };
        let frame = Letterbox { size: [to_height, to_width], filter: Filter::CvNearest, fill: 0, enlarge, anchor };
        let done = frame.apply(Image::blank(height, width, 3, 255).unwrap()).unwrap();
        prop_assert_eq!((done.height, done.width), (to_height, to_width));
        let place = done.placement;
        prop_assert_eq!(place.picture, [width, height]);
        let there = [x * width as f64, y * height as f64];
        let here: [f64; 2] = std::array::from_fn(|i| there[i] * place.scale[i] + place.offset[i]);
        let back = place.back(here);
        prop_assert!((back[0] - there[0]).abs() < 1e-9 && (back[1] - there[1]).abs() < 1e-9);
        // The picture, and nothing but it, is white.
        for (i, pixel) in done.pixels.chunks_exact(3).enumerate() {
            let center = place.back([(i % to_width) as f64 + 0.5, (i / to_width) as f64 + 0.5]);
            let inside = (0.0..width as f64).contains(&center[0]) && (0.0..height as f64).contains(&center[1]);
            prop_assert_eq!(pixel[0] == 255, inside);
        }
    }

    /// Every filter keeps a plain picture plain, whatever the sizes.
    #[test]
    fn a_plain_picture_stays_plain(
        (height, width) in (1..40usize, 1..40usize),
        (to_height, to_width) in (1..80usize, 1..80usize),
        value: u8,
    ) {
        for filter in FILTERS {
            for channels in [1, 3] {
                let image = Image::blank(height, width, channels, value).unwrap();
                let done = resize(image, [to_height, to_width], filter).unwrap();
                prop_assert_eq!(done.pixels.len(), to_height * to_width * channels);
                prop_assert!(done.pixels.iter().all(|v| v.abs_diff(value) <= 1), "{:?}", filter);
            }
        }
    }
}

#[test]
fn sizes_beyond_all_bounds_are_refused_before_they_are_allocated() {
    let tiny = || Image::blank(1, 1, 3, 0).unwrap();
    assert!(matches!(resize(tiny(), [16_384, 16_384], Filter::PilBilinear), Err(Fault::TooLarge { .. })));
    assert!(matches!(resize(tiny(), [1, 20_000], Filter::CvLinear), Err(Fault::TooLarge { .. })));
    assert!(resize(tiny(), [0, 1], Filter::CvArea).is_err());
    assert!(crop(&tiny(), [0, 0, 2, 1]).is_err());
    assert!(Image::blank(0, 5, 3, 0).is_err());
}

#[test]
fn extreme_reductions_end() {
    for filter in FILTERS {
        let long = Image::blank(1, 16_384, 3, 7).unwrap();
        assert_eq!(resize(long, [1, 1], filter).unwrap().pixels, [7; 3], "{filter:?}");
    }
}
