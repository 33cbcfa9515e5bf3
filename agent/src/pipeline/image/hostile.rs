//! Files that are cut off, broken or lie about their size.

use super::decode::Bounds;
use super::{jpeg, png};
use crate::pipeline::{Fault, Pipeline, PipelineError};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, PipelineSpec, TensorSpec},
    tensor::{Datatype, Tensor},
};
use proptest::prelude::*;
use serde_json::json;

const JPEG: &[u8] = include_bytes!("../fixtures/small.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("../fixtures/small-progressive.jpg");
const PNG: &[u8] = include_bytes!("../fixtures/small.png");
const BOUNDS: Bounds = Bounds { pixels: 16 << 20 };

fn decoder() -> Pipeline {
    let spec: PipelineSpec = serde_json::from_value(json!({
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
        "pre": [{"op": "decode_image"}, {"op": "resize", "size": [8, 8], "filter": "pil-bilinear"},
                {"op": "layout", "order": "nhwc"}],
    }))
    .unwrap();
    let x = TensorSpec { name: "x".into(), datatype: Datatype::Uint8, shape: vec![-1, 8, 8, 3] };
    Pipeline::compile(&spec, &Interface { inputs: vec![x.clone()], outputs: vec![x] }, &[]).unwrap()
}

fn files(files: &[&[u8]]) -> Tensor {
    let raw: Vec<u8> =
        files.iter().flat_map(|file| [&(file.len() as u32).to_le_bytes()[..], file].concat()).collect();
    Tensor::new("x", Datatype::Bytes, vec![files.len()], Bytes::from(raw)).unwrap()
}

#[test]
fn every_cut_is_an_error_not_a_grey_picture() {
    for (name, whole) in [("jpeg", JPEG), ("progressive", PROGRESSIVE)] {
        assert!(jpeg::decode(whole, BOUNDS).is_ok(), "{name}");
        for cut in 0..whole.len() {
            assert!(jpeg::decode(&whole[..cut], BOUNDS).is_err(), "{name} cut at {cut} of {}", whole.len());
        }
    }
    assert!(png::decode(PNG, BOUNDS).is_ok());
    let data_ends = PNG.len() - 12 - 4; // the empty last chunk, and the check sum of the data
    for cut in 0..data_ends {
        assert!(png::decode(&PNG[..cut], BOUNDS).is_err(), "cut at {cut} of {}", PNG.len());
    }
}

#[test]
fn a_lie_about_the_size_is_refused_by_the_header_alone() {
    let mut bomb = PNG.to_vec();
    bomb[16..24].copy_from_slice(&[0, 0, 0x3f, 0xff, 0, 0, 0x3f, 0xff]);
    let crc = flate2::Crc::new();
    let crc = {
        let mut crc = crc;
        crc.update(&bomb[12..29]);
        crc.sum()
    };
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let refused = png::decode(&bomb, BOUNDS).err().unwrap();
    assert!(matches!(refused, Fault::TooLarge { found: 268_402_689, .. }), "{refused}");

    let frame = JPEG.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let mut bomb = JPEG.to_vec();
    bomb[frame + 5..frame + 9].copy_from_slice(&[0x3f, 0xff, 0x3f, 0xff]);
    let refused = jpeg::decode(&bomb, BOUNDS).err().unwrap();
    assert!(matches!(refused, Fault::TooLarge { found: 268_402_689, .. }), "{refused}");
    bomb[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    assert!(jpeg::decode(&bomb, BOUNDS).is_err());
    bomb[frame + 5..frame + 9].copy_from_slice(&[0; 4]);
    assert!(jpeg::decode(&bomb, BOUNDS).is_err());

    let small = Bounds { pixels: 100 };
    assert!(matches!(png::decode(PNG, small), Err(Fault::TooLarge { limit: 100, .. })));
}

#[test]
fn what_stands_behind_the_end_of_a_picture_is_nothing() {
    for whole in [JPEG, PROGRESSIVE] {
        let pixels = jpeg::decode(whole, BOUNDS).unwrap().pixels;
        let film = [0xff, 0xda, 0, 8].repeat(1_000);
        for behind in [&b"\0"[..], &[0xff], &[0xff, 0xda, 1], &JPEG[..JPEG.len() / 2], JPEG, &film] {
            let decoded = jpeg::decode(&[whole, behind].concat(), BOUNDS);
            assert_eq!(decoded.unwrap().pixels, pixels, "{} bytes behind it", behind.len());
        }
        // A thumbnail with an end of its own is no end of the picture.
        let thumbnail = [&[0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 0xff, 0xda][..], &whole[2..]].concat();
        assert_eq!(jpeg::decode(&thumbnail, BOUNDS).unwrap().pixels, pixels);
        let cut = &thumbnail[..thumbnail.len() - 2];
        assert!(jpeg::decode(cut, BOUNDS).is_err());
    }
}

#[test]
fn thousands_of_scans_are_refused_before_the_first() {
    let mut many = PROGRESSIVE[..PROGRESSIVE.len() - 2].to_vec();
    let scan = many.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
    let last = many[scan..].to_vec();
    (0..5000).for_each(|_| many.extend_from_slice(&last));
    assert!(matches!(jpeg::decode(&many, BOUNDS), Err(Fault::TooLarge { what: "JPEG scans", .. })));
}

#[test]
fn a_pipeline_names_the_step_and_the_image() {
    let pipeline = decoder();
    let (done, _) = pipeline.prepare(&[files(&[JPEG, PNG])]).unwrap();
    assert_eq!(done[0].shape(), [2, 8, 8, 3]);
    let (none, _) = pipeline.prepare(&[files(&[])]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(none[0].len(), 0);
    for (bad, said) in [
        (&b"GIF89a"[..], "pipeline `pre` step 1 (`decode_image`): image 1: is neither JPEG nor PNG"),
        (b"", "image 1: is neither JPEG nor PNG"),
        (&JPEG[..JPEG.len() / 2], "image 1: JPEG: "),
        (&PNG[..PNG.len() / 2], "image 1: PNG: "),
    ] {
        let e = pipeline.prepare(&[files(&[PNG, bad])]).unwrap_err();
        assert!(e.to_string().contains(said), "{e} lacks {said}");
        assert!(e.is_clients() && matches!(e, PipelineError::Pre { step: 1, .. }));
    }
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(
        which in 0..3usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = [JPEG, PROGRESSIVE, PNG][which].to_vec();
        for (at, to) in flips {
            let at = at.index(file.len());
            file[at] = to;
        }
        let pipeline = decoder();
        if let Ok((done, _)) = pipeline.prepare(&[files(&[&file])]) {
            prop_assert_eq!(done[0].len(), 192);
        }
    }

    #[test]
    fn any_bytes_as_exif_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), little: bool) {
        let head: &[u8] = if little { b"II*\0" } else { b"MM\0*" };
        super::exif::orientation(&[head, &bytes].concat());
        super::exif::orientation(&bytes);
    }
}
