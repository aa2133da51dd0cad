"""Many documents and many questions: tasks, the file of answers, workers in this process and on Ray, libraries."""
