//! Address decoding: which device answers on which ports and addresses.
