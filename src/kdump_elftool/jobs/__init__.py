"""One use case each: stages in, frozen result out."""
