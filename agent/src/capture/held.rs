//! A request's tensors kept at hand until its answer is there: references to their bytes, no copies. With up to
//! four inputs of up to six dimensions, as nearly all models have, it takes no memory of its own.

use bytes::Bytes;
use edgefleet_shared::{
    bundle::Interface,
    tensor::{Datatype, Tensor},
};

const INPUTS: usize = 4;
const RANK: usize = 6;

#[derive(Clone, Debug)]
pub struct Slim {
    /// Place in the interface, which has the name.
    input: u8,
    datatype: Datatype,
    rank: u8,
    dims: [usize; RANK],
    data: Bytes,
}

// Nearly all are few, and a box would be an allocation in each request.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Held {
    Few([Option<Slim>; INPUTS]),
    Many(Vec<Tensor>),
}

impl Held {
    pub fn of(interface: &Interface, inputs: &[Tensor]) -> Self {
        let mut few = [const { None }; INPUTS];
        if inputs.len() > INPUTS {
            return Self::Many(inputs.to_vec());
        }
        for (place, tensor) in few.iter_mut().zip(inputs) {
            let input = interface.inputs.iter().position(|spec| spec.name == tensor.name());
            let shape = tensor.shape();
            let (Some(input), true) = (input.and_then(|at| u8::try_from(at).ok()), shape.len() <= RANK)
            else {
                return Self::Many(inputs.to_vec());
            };
            let mut dims = [0; RANK];
            dims[..shape.len()].copy_from_slice(shape);
            let (datatype, rank, data) = (tensor.datatype(), shape.len() as u8, tensor.data().clone());
            *place = Some(Slim { input, datatype, rank, dims, data });
        }
        Self::Few(few)
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::Few(few) => few.iter().flatten().map(|slim| slim.data.len()).sum(),
            Self::Many(many) => many.iter().map(|tensor| tensor.data().len()).sum(),
        }
    }

    /// All of it, for as long as a late word may come: references to the request's own bytes.
    pub fn whole(self, interface: &Interface) -> Vec<Tensor> {
        match self {
            Self::Many(many) => many,
            Self::Few(few) => {
                let one = |slim: Slim| {
                    let name = &interface.inputs.get(usize::from(slim.input))?.name;
                    let shape = slim.dims[..usize::from(slim.rank)].to_vec();
                    Tensor::new(name.clone(), slim.datatype, shape, slim.data).ok()
                };
                few.into_iter().flatten().filter_map(one).collect()
            }
        }
    }

    /// A copy of row `row` of `rows`: nothing of the request's memory stays in use. `None` if the tensors have no
    /// such row.
    pub fn row(&self, interface: &Interface, rows: usize, row: usize) -> Option<Vec<Tensor>> {
        match self {
            Self::Few(few) => few
                .iter()
                .flatten()
                .map(|slim| {
                    let name = &interface.inputs.get(usize::from(slim.input))?.name;
                    let shape = &slim.dims[..usize::from(slim.rank)];
                    cut(name, slim.datatype, shape, &slim.data, rows, row)
                })
                .collect(),
            Self::Many(many) => rows_of(many, rows, row),
        }
    }
}

/// Row `row` of `rows` of each tensor, copied.
pub fn rows_of(tensors: &[Tensor], rows: usize, row: usize) -> Option<Vec<Tensor>> {
    let one = |t: &Tensor| cut(t.name(), t.datatype(), t.shape(), t.data(), rows, row);
    tensors.iter().map(one).collect()
}

fn cut(
    name: &str,
    datatype: Datatype,
    shape: &[usize],
    data: &Bytes,
    rows: usize,
    row: usize,
) -> Option<Tensor> {
    // A tensor without the batch dimension belongs to every row.
    if rows <= 1 || shape.first() != Some(&rows) {
        return Tensor::new(name, datatype, shape.to_vec(), Bytes::copy_from_slice(data)).ok();
    }
    let mut one = shape.to_vec();
    *one.first_mut()? = 1;
    let each: usize = shape[1..].iter().product();
    let (from, to) = match datatype.size() {
        Some(size) => (row * each * size, (row + 1) * each * size),
        None => (skip_texts(data, 0, row * each)?, skip_texts(data, 0, (row + 1) * each)?),
    };
    Tensor::new(name, datatype, one, Bytes::copy_from_slice(data.get(from..to)?)).ok()
}

/// Where the text after `count` of them begins.
fn skip_texts(data: &[u8], mut at: usize, count: usize) -> Option<usize> {
    for _ in 0..count {
        let len = data.get(at..)?.first_chunk::<4>()?;
        at = at.checked_add(4)?.checked_add(u32::from_le_bytes(*len) as usize)?;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::bundle::manifest::TensorSpec;

    #[test]
    fn a_row_is_cut_out_of_every_kind_of_tensor() {
        let numbers = Tensor::new("x", Datatype::Uint8, vec![3, 2], Bytes::from_static(b"abcdef")).unwrap();
        let texts = b"\x01\0\0\0p\x02\0\0\0qq\x00\0\0\0";
        let texts = Tensor::new("t", Datatype::Bytes, vec![3], Bytes::from_static(texts)).unwrap();
        let whole = Tensor::new("k", Datatype::Uint8, vec![2], Bytes::from_static(b"yz")).unwrap();
        let all = [numbers, texts, whole];
        let spec = |t: &Tensor| TensorSpec { name: t.name().into(), datatype: t.datatype(), shape: vec![-1] };
        let interface = Interface { inputs: all.iter().map(spec).collect(), outputs: vec![] };
        for held in [Held::of(&interface, &all), Held::Many(all.to_vec())] {
            assert_eq!(held.bytes(), 6 + 15 + 2);
            let cut = held.row(&interface, 3, 1).unwrap();
            assert_eq!((cut[0].shape(), &cut[0].data()[..]), (&[1, 2][..], &b"cd"[..]));
            assert_eq!((cut[1].shape(), &cut[1].data()[..]), (&[1][..], &b"\x02\0\0\0qq"[..]));
            assert_eq!(&cut[2].data()[..], b"yz");
            assert!(held.row(&interface, 3, 3).is_none());
            assert_eq!(held.row(&interface, 1, 0).unwrap(), all);
        }
        assert!(matches!(Held::of(&interface, &all), Held::Few(_)));
    }
}
