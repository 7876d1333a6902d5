use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use zeroize::{Zeroize, Zeroizing};

/// The text of a secret. Its last clone overwrites it, and none of them is printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(Arc<Zeroizing<Box<str>>>);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }
}

impl From<String> for Text {
    fn from(mut text: String) -> Self {
        // To make it fit would move it, and leave the old copy as it is.
        let copy = Self::from(text.as_str());
        text.zeroize();
        copy
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
