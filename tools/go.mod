module steadfast/tools

go 1.26
