"""The morning report: a run as a folder of static pages, for people.

gather      what the pages show, read once through `cvm_batch.results.reading`
nights      the figures of a run and of those before it; drift judges them
wording     plain sentences: how a run ended, what a reason means, what to do
naming      how slides are called, by their names or by pseudonyms
thumbnails  a cell's tile as a small picture within its page
charts      where marks lie on a drawing
overview, lists, slide_page   what each kind of page is filled with
pages       templates, style and script into pages that load nothing
writing     all of it into a folder
"""
