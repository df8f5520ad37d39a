//! Errors of the store as gRPC statuses, the same for every call.

use tonic::Status;

use crate::store::StoreError;

/// The status for an error of the store.
pub fn status(error: &StoreError) -> Status {
    let text = error.to_string();
    match error {
        StoreError::Conflict(_) => Status::aborted(text),
        StoreError::NotFound(_) => Status::not_found(text),
        StoreError::Exists(_) => Status::already_exists(text),
        StoreError::Refused(_) => Status::failed_precondition(text),
        StoreError::Full(_) => Status::resource_exhausted(text),
        StoreError::Corrupt(_) | StoreError::Unavailable(_) => Status::unavailable(text),
    }
}
