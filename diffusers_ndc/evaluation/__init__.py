"""Certification of whole data sets: the records of a run, and the report that is made from them alone."""
