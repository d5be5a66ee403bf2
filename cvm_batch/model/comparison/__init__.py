"""The 22 networks that the paper compares CVM-Cervix with (Table 3), by name.

`registry` says which there are; `building` makes them, from timm, from torchvision, or from the
modules beside it, which are written from the papers.
"""
