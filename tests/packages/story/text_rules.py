"""A sibling of the model: how texts are cleaned before they are cut into words."""

import re


def clean(text):
    return re.sub(r"[^\w]+", " ", text.lower()).strip()
