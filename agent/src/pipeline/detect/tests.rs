use super::nms::{Nms, overlap};
use super::*;
use proptest::prelude::*;

fn boxes() -> impl Strategy<Value = Vec<Detection>> {
    let one = (0.0..90.0f32, 0.0..90.0f32, 1.0..40.0f32, 1.0..40.0f32, 0.0..1.0f32, 0..3u8);
    let one = one.prop_map(|(x, y, w, h, score, class)| Detection {
        edges: [x, y, x + w, y + h],
        score,
        class: f32::from(class),
    });
    prop::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn what_suppression_keeps_is_apart_and_what_it_drops_is_covered(
        found in boxes(),
        iou in 0.05..0.95f32,
        score in 0.0..0.9f32,
        across_classes: bool,
    ) {
        let nms = Nms { iou, max: 100, score, across_classes };
        let kept = nms.keep(found.clone());
        let rivals = |a: &Detection, b: &Detection| across_classes || a.class == b.class;
        for (i, a) in kept.iter().enumerate() {
            prop_assert!(found.contains(a) && a.score >= score);
            for b in &kept[i + 1..] {
                prop_assert!(a.score >= b.score);
                prop_assert!(!rivals(a, b) || overlap(&a.edges, &b.edges) <= iou);
            }
        }
        for gone in found.iter().filter(|d| !kept.contains(d) && d.score >= score) {
            let covered = kept.iter().any(|better| {
                better.score >= gone.score && rivals(better, gone) && overlap(&better.edges, &gone.edges) > iou
            });
            prop_assert!(covered, "{:?}", gone);
        }
        prop_assert_eq!(nms.keep(kept.clone()), kept);
    }

    #[test]
    fn packing_is_undone_by_unpacking(images in prop::collection::vec(boxes(), 0..4)) {
        prop_assert_eq!(unpack(pack(&images).unwrap()).unwrap(), images);
    }
}

#[test]
fn overlaps_are_shares_of_the_union() {
    for (a, b, share) in [
        ([0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], 1.0),
        ([0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], 1.0 / 3.0),
        ([0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0], 0.0),
        ([3.0, 3.0, 1.0, 1.0], [3.0, 3.0, 1.0, 1.0], 0.0),
    ] {
        assert!((overlap(&a, &b) - share).abs() < 1e-6);
    }
}

#[test]
fn boxes_that_are_no_numbers_are_left_out_and_too_many_are_refused() {
    let row = |left: f32| [left, 0.0, 1.0, 1.0, 0.5, 0.0];
    let array = Array::floats(vec![1, 3, 6], [row(f32::NAN), row(f32::INFINITY), row(0.0)].concat());
    assert_eq!(unpack(array).unwrap()[0].len(), 1);
    let many = Array::floats(vec![1, 10_000, 6], vec![0.0; 60_000]);
    assert!(matches!(unpack(many), Err(Fault::TooLarge { .. })));
    assert!(unpack(Array::floats(vec![2, 3], vec![0.0; 6])).is_err());
}

proptest! {
    #[test]
    fn as_few_as_are_wanted_are_held_and_they_are_the_best(found in boxes(), most in 0usize..12) {
        let mut kept = Best::of(most);
        for detection in &found {
            kept.offer(Detection { score: (detection.score * 8.0).round(), ..*detection });
            prop_assert!(kept.kept.len() <= most);
        }
        let rounded = found.into_iter().map(|d| Detection { score: (d.score * 8.0).round(), ..d }).collect();
        prop_assert_eq!(kept.finish(), best(rounded, most));
    }
}

#[test]
fn many_images_with_many_boxes_are_refused_at_the_first_too_many() {
    let detection = Detection { edges: [0.0; 4], score: 1.0, class: 0.0 };
    let mut decoded_images = 0;
    let image = |_| {
        decoded_images += 1;
        let mut found = Best::of(1_000);
        (0..10_000).for_each(|_| found.offer(detection));
        found
    };
    assert!(matches!(decoded(10_000, image), Err(Fault::TooLarge { .. })));
    assert_eq!(decoded_images, 1);
    let array = decoded(2, |_| Best::of(3)).unwrap();
    assert_eq!(array.shape, [2, 0, 6]);
}
