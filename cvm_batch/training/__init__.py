"""From labelled cell images to a bundle: data sets, splits, recipes, the loop, figures."""
