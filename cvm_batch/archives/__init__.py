"""Where tiles come from: one reader per format behind one interface."""
