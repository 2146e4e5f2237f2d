module steadfast

go 1.26
