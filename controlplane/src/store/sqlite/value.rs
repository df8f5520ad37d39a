//! Values as SQLite keeps them: signed integers of 64 bits, text, bytes of a fixed length.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::failure::{Done, damaged};
use crate::domain::{Name, SecretHash, TokenId, UnixMillis};
use crate::store::StoreError;

/// Numbers beyond what SQLite can keep are those of nothing: the highest it can keep stands for them.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A time; one beyond 292 million years is that far away.
pub(super) fn time(at: UnixMillis) -> i64 {
    number(at.0)
}

/// A count or number read back.
pub(super) fn count(row: &SqliteRow, column: &str) -> Done<u64> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|_| damaged(format!("`{column}` is {value}")))
}

/// The same where there may be none.
pub(super) fn count_if(row: &SqliteRow, column: &str) -> Done<Option<u64>> {
    let value: Option<i64> = row.try_get(column)?;
    value
        .map(|value| u64::try_from(value).map_err(|_| damaged(format!("`{column}` is {value}"))))
        .transpose()
}

/// A time read back.
pub(super) fn instant(row: &SqliteRow, column: &str) -> Done<UnixMillis> {
    count(row, column).map(UnixMillis)
}

/// The same where there may be none.
pub(super) fn instant_if(row: &SqliteRow, column: &str) -> Done<Option<UnixMillis>> {
    Ok(count_if(row, column)?.map(UnixMillis))
}

/// Bytes of a fixed length read back.
pub(super) fn bytes<const N: usize>(row: &SqliteRow, column: &str) -> Done<[u8; N]> {
    let value: &[u8] = row.try_get(column)?;
    let length = value.len();
    value
        .try_into()
        .map_err(|_| damaged(format!("`{column}` is {length} bytes long, not {N}")))
}

/// Text read back.
pub(super) fn text(row: &SqliteRow, column: &str) -> Done<String> {
    Ok(row.try_get(column)?)
}

/// A name read back.
pub(super) fn name(row: &SqliteRow, column: &str) -> Done<Name> {
    let value: &str = row.try_get(column)?;
    Name::parse(value).ok_or_else(|| damaged(format!("`{column}` is no name")))
}

/// A token's id read back.
pub(super) fn token_id(row: &SqliteRow, column: &str) -> Done<TokenId> {
    let value: &str = row.try_get(column)?;
    Ok(TokenId(value.into()))
}

/// A hash read back.
pub(super) fn hash(row: &SqliteRow) -> Done<SecretHash> {
    bytes(row, "hash").map(SecretHash)
}

/// For a count that is to be stored: refused when SQLite could not give it back.
pub(super) fn storable(value: u64, what: &str) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Refused(format!("{value} {what} are too many")))
}
