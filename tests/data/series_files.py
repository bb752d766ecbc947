"""Writers of small files in the exact formats in which the series data sets are published."""

import datetime

import numpy as np

AIR_HEADER = (
    '"No","year","month","day","hour","PM2.5","PM10","SO2","NO2","CO","O3",'
    '"TEMP","PRES","DEWP","RAIN","wd","WSPM","station"'
)
AIR_START = datetime.datetime(2013, 3, 1)
AIR_HOURS = 35064
ETT_HEADER = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"
ETT_START = datetime.datetime(2016, 7, 1)
OUTCOMES_HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
HOUR = datetime.timedelta(hours=1)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def air_lines(station, hours=AIR_HOURS, start=AIR_START):
    """Rows whose PM2.5 is the month, PM10 the hour from the start of the data; all else differs."""
    lines = [AIR_HEADER]
    for number in range(hours):
        t = start + number * HOUR
        total = (t - AIR_START) // HOUR
        lines.append(
            f"{total + 1},{t.year},{t.month},{t.day},{t.hour},{t.month},{total},4,7,300,77,-0.7,"
            f'{1000 + t.hour},-18.8,0,"NNW",4.4,"{station}"'
        )
    return lines


def air_file(root, station):
    return root / f"PRSA_Data_{station}_20130301-20170228.csv"


def write_air(root, station, lines=None):
    return write(air_file(root, station), air_lines(station) if lines is None else lines)


def ett_lines(hours, start=ETT_START):
    """Rows whose first load and oil temperature are the number of the row."""
    return [
        ETT_HEADER,
        *(
            f"{start + number * HOUR},{number},2.0090000629425,{number % 24},"
            f"0.4620000123977,4.20300006866455,1.34000003337860,{number}.0"
            for number in range(hours)
        ),
    ]


def record_lines(record, unit, steps=60, gap=40, features=("DiasABP", "MAP", "SysABP", "Temp")):
    """A record whose features are measured every `gap` minutes with a value of 100 + the step."""
    lines = [
        "Time,Parameter,Value",
        f"00:00,RecordID,{record}",
        "00:00,Age,54",
        "00:00,Gender,0",
        "00:00,Height,-1",
        f"00:00,ICUType,{unit}",
        "00:00,Weight,-1",
    ]
    for step in range(steps):
        time = f"{step * gap // 60:02d}:{step * gap % 60:02d}"
        lines += [f"{time},HR,73", *(f"{time},{name},{100 + step}" for name in features)]
    return lines


def write_stays(root, count=20, first=134539):
    """A set of records with outcomes; the unit is the id modulo 4, every fifth patient dies."""
    outcomes = [OUTCOMES_HEADER]
    for record in range(first, first + count):
        lines = record_lines(record, record % 4 + 1)
        write(root / "set-a" / f"{record}.txt", lines)
        outcomes.append(f"{record},6,1,5,-1,{int(record % 5 == 0)}")
    write(root / "Outcomes-a.txt", outcomes)
    return root


def elements(source, seed=0):
    rng = np.random.default_rng(seed)
    return [source.load(index, rng) for index in range(len(source))]
