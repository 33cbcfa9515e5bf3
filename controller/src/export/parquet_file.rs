//! Columns of values become one Parquet file, by the column writer and without arrow.
//!
//! Texts are `STRING`, counts `INT64`, times `TIMESTAMP(MILLIS, UTC)`; only reals may be missing. The same columns
//! become the same bytes.

use bytes::Bytes;
use edgefleet_shared::time::Timestamp;
use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        reader::{FileReader, SerializedFileReader},
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::Type,
};
use std::sync::Arc;

pub struct Column<'a> {
    pub name: &'static str,
    pub values: Values<'a>,
}

pub enum Values<'a> {
    Text(Vec<&'a str>),
    /// What does not fit into 63 bits becomes the largest that does.
    Count(Vec<u64>),
    Time(Vec<Timestamp>),
    /// Also what is not finite is missing.
    Real(Vec<Option<f64>>),
}

/// The file's bytes.
///
/// # Errors
/// [`ParquetError`] if columns differ in length.
pub fn write(columns: &[Column<'_>]) -> Result<Vec<u8>, ParquetError> {
    let fields = columns.iter().map(|column| Ok(Arc::new(column.field()?)));
    let fields = fields.collect::<Result<Vec<_>, ParquetError>>()?;
    let schema = Type::group_type_builder("schema").with_fields(fields).build()?;
    let properties = WriterProperties::builder()
        .set_created_by(concat!("edgefleet ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::new(properties))?;
    let mut group = file.next_row_group()?;
    for column in columns {
        column.write(&mut group)?;
    }
    group.close()?;
    file.close()?;
    Ok(bytes)
}

/// How many rows a Parquet file has, or that it is none.
///
/// # Errors
/// [`ParquetError`].
pub fn rows_of(bytes: &[u8]) -> Result<u64, ParquetError> {
    let reader = SerializedFileReader::new(Bytes::copy_from_slice(bytes))?;
    Ok(u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0))
}

impl Column<'_> {
    fn field(&self) -> Result<Type, ParquetError> {
        let utc = LogicalType::timestamp(true, TimeUnit::MILLIS);
        let (physical, logical, repetition) = match &self.values {
            Values::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String), Repetition::REQUIRED),
            Values::Count(_) => (Physical::INT64, None, Repetition::REQUIRED),
            Values::Time(_) => (Physical::INT64, Some(utc), Repetition::REQUIRED),
            Values::Real(_) => (Physical::DOUBLE, None, Repetition::OPTIONAL),
        };
        Type::primitive_type_builder(self.name, physical)
            .with_repetition(repetition)
            .with_logical_type(logical)
            .build()
    }

    fn write<W: std::io::Write + Send>(
        &self,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<(), ParquetError> {
        let gone = || ParquetError::General(format!("the file has no column `{}`", self.name));
        let mut column = group.next_column()?.ok_or_else(gone)?;
        match &self.values {
            Values::Text(all) => {
                let all: Vec<_> = all.iter().map(|text| ByteArray::from(*text)).collect();
                column.typed::<ByteArrayType>().write_batch(&all, None, None)?;
            }
            Values::Count(all) => {
                let all: Vec<_> = all.iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect();
                column.typed::<Int64Type>().write_batch(&all, None, None)?;
            }
            Values::Time(all) => {
                let millis = |at: &Timestamp| i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
                let all: Vec<_> = all.iter().map(millis).collect();
                column.typed::<Int64Type>().write_batch(&all, None, None)?;
            }
            Values::Real(all) => {
                let all: Vec<_> = all.iter().map(|x| x.filter(|x| x.is_finite())).collect();
                let present: Vec<i16> = all.iter().map(|x| i16::from(x.is_some())).collect();
                let values: Vec<f64> = all.into_iter().flatten().collect();
                column.typed::<DoubleType>().write_batch(&values, Some(&present), None)?;
            }
        }
        column.close()
    }
}
